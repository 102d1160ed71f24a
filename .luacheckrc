std = "luajit"
max_line_length = 140
exclude_files = { "build" }
files["spec"] = { std = "+busted" }
files["spec/golden"] = { max_line_length = false }
