"""What rules are made of, for the checker and the targets: findings, the class of a rule, example models."""
