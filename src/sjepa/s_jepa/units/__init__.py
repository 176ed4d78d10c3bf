"""Analysis of the units of a trained model: entropies, components, dumps."""
