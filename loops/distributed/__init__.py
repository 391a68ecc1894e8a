"""Devices, and workers on several machines."""
