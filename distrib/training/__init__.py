"""From histories to a trained model: the step, the loop, the engines, and Ray around them."""
