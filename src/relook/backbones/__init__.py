"""Image -> feature maps, finest first."""
