"""What the units of a trained model are: entropies, components, dumps."""
