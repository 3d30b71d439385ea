"""Several teachers: each file is one published way in which they speak as one."""
