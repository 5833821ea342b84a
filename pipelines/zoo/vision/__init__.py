"""torchvision's models by name, and its detectors in Trivid's form."""
