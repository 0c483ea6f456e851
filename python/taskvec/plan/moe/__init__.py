"""Dense models into one mixture of experts: layouts, gates and the plan."""
