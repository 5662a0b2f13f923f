"""What rules are made of, for the checker and the targets: findings and the class of a rule."""
