"""Models of user-item pairs with a row for each user: neural collaborative filtering."""
