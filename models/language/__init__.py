"""What language models share before the first tensor reaches them: how documents are laid into rows."""
