"""Accuracy as FLARE's organisers compute it: DSC and NSD per organ and case."""
