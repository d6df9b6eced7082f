"""Configuration, backbone loading and the models; the files here are flat siblings because they travel to the Hub."""
