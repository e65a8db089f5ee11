"""From rows to a ranked page, in two rooms: ``ranking``, and ``page``, which draws it. No torch."""
