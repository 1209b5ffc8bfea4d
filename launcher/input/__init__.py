"""What is asked, row by row: the input files, their index, and the forms of results."""
