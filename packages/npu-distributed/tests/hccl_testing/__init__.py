"""What the tests of this folder share: ranks as processes, checks for what they leave behind, reference results."""
