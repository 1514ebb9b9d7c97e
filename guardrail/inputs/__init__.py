"""What people hand in: requests of any form, and the rows of their own files.

Its doors are `messages.to_request`, `rows`, `canonical` (pictures for another model) and `folding`
(texts in plain letters). A request goes from `messages` to `parts`, where a new modality begins,
and from there to `images` or `videos`, whose bytes come by `sources` and `fetch`. `limits` bounds
them all.
"""
