"""Several tasks, one student: each file is one published way in which teachers of tasks speak to a shared network."""
