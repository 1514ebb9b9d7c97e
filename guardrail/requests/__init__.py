"""What users ask: messages and pictures, decoded within limits."""
