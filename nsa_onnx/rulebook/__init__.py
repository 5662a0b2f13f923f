"""What rules are made of, for the checker and the targets: findings, the rule itself, models for examples."""
