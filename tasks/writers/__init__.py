"""Teachers that write text, one file each: prompts in, texts out."""
