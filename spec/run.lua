-- Runs the suites and adds up what they report: each ends with a line "N passed, N failed".
--   --fast    C tests and specs, without those tagged #slow
--   --c-only  C tests
--   --all     everything, then once more in a build without third-party compute libraries
-- Environment: B (build folder), SANITIZER (asan: preload PRELOAD into the interpreter), MAKE.

local build = os.getenv("B") or "build"
local mode = arg[1] or "--fast"
local passed, failed = 0, 0

local function run(title, command)
  io.write("== ", title, "\n")
  io.flush()
  local start = os.time()
  local pipe = assert(io.popen(command .. " 2>&1; echo \"exit status $?\""))
  local last_passed, last_failed, status
  for line in pipe:lines() do
    local p, f = line:match("(%d+) passed, (%d+) failed")
    if p then
      last_passed, last_failed = tonumber(p), tonumber(f)
    elseif line:match("^exit status %d+$") then
      status = tonumber(line:match("%d+"))
    else
      io.write(line, "\n")
    end
  end
  pipe:close()
  if not last_passed or (status ~= 0 and last_failed == 0) then
    io.write(title, ": ended with status ", tostring(status), " and no count of failures\n")
    last_failed = (last_failed or 0) + 1
  end
  passed, failed = passed + (last_passed or 0), failed + last_failed
  io.write(string.format("   %d passed, %d failed (%d s)\n", last_passed or 0, last_failed, os.time() - start))
  io.flush()
end

local function list(pattern)
  local names = {}
  local pipe = assert(io.popen("ls " .. pattern .. " 2>/dev/null"))
  for name in pipe:lines() do names[#names + 1] = name end
  pipe:close()
  return names
end

local function c_tests(folder)
  for _, source in ipairs(list("spec/c/*_test.c")) do
    local name = source:match("([%w_]+)%.c$")
    run("C: " .. name, "env B=" .. folder .. " RESIN_LIB=" .. folder .. "/libresin.so " .. folder .. "/test/" .. name)
  end
end

local function specs(folder, title, options)
  local preload = os.getenv("PRELOAD")
  local environment = "RESIN_LIB=" .. folder .. "/libresin.so RESIN_BUILD=" .. folder
  if preload then
    environment = environment .. " LD_PRELOAD=" .. preload ..
      " ASAN_OPTIONS=detect_leaks=1 LSAN_OPTIONS=suppressions=$PWD/spec/support/leaks.supp:print_suppressions=0"
  end
  run(title, string.format("env %s busted --lua=luajit %s spec", environment, options))
end

c_tests(build)
if mode ~= "--c-only" then
  specs(build, "specs", mode == "--fast" and "--exclude-tags=slow" or "")
end
if mode == "--all" then
  local plain = build .. "/plain"
  local make = os.getenv("MAKE") or "make"
  local status = os.execute(make .. " -j2 B=" .. plain .. " BLAS=none ONEDNN=no build >" .. build .. "/plain.log 2>&1")
  if status == 0 or status == true then
    specs(plain, "specs without BLAS and oneDNN", "--exclude-tags=slow")
  else
    failed = failed + 1
    os.execute("tail -n 20 " .. build .. "/plain.log")
    io.write("the build with BLAS=none ONEDNN=no failed\n")
  end
end
io.write(string.format("%d passed, %d failed\n", passed, failed))
os.exit(failed == 0 and 0 or 1)
