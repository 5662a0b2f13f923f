"""What the places that models are meant for can do: their limits, rules and fixes."""
