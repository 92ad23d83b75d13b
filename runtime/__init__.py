"""Running and verifying: sessions on every target, artifacts opened, numbers compared with the float64 reference."""
