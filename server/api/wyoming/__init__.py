"""The Wyoming protocol, by which Home Assistant speaks to speech services: events over TCP."""
