"""Update rules: the graph they are traced to, what every algorithm shares, and the driver that steps them."""
