"""What a store tells people and machines about itself: README, Croissant, signature."""
