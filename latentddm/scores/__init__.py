"""How well m draws describe a distribution of which one sample is seen."""
