-- make bench: our time for each workload beside its peers', as a table, in bench/results.json and on docs/performance.md.
--   --only NAME,NAME   some workloads or groups     --threads 1,2   thread counts
--   --peers NAME,NAME  some peers                   --seconds S     how long each side of a row is measured
--   --patience S       how long a row may wait for the machine to be quiet
--   --dtype NAME       rows of one dtype            --measure NAME  time, memory or start
--   --mode eager       resin without compiling
-- Both sides live as long as a row and are asked in turn, so what disturbs the machine disturbs both; the median of several rounds
-- counts. A round in which others used the processor is repeated. Results are compared before anything is timed, and a mismatch
-- fails. A run with --peers or --mode is not the whole, so it is printed only. Run it without OPENBLAS_CORETYPE (the Makefile sees to
-- that).

package.path = arg[0]:match "^(.*)/" .. "/?.lua;" .. package.path
local resin = require "resin"
local Worker, results, rows = require "worker", require "results", require "rows"

local ROUNDS = 5
local QUIET = 0.1      -- processors that others may take from us
-- How far a result may be from PyTorch's in f32, as a share of its largest value.
local TOLERANCE = { f32 = 1e-3, bf16 = 2e-2 }
local RESULTS, PAGE = "bench/results.json", "docs/performance.md"

-- ---- options --------------------------------------------------------------------------------------------------------------

local function option(name, default)
  for i = 1, #arg do
    if arg[i] == name and arg[i + 1] and arg[i + 1] ~= "" then return arg[i + 1] end
  end
  return default
end

local function set_of(text)
  local set = {}
  for word in text:gmatch "[^,]+" do set[word] = true end
  return next(set) and set or nil
end

local only, wanted = set_of(option("--only", "")), set_of(option("--peers", ""))
local seconds, patience = tonumber(option("--seconds", "2")), tonumber(option("--patience", "20"))
local mode = option("--mode", "program")
local build = os.getenv "B" or "build"
local folder = build .. "/bench"
assert(os.execute("mkdir -p " .. folder) == 0)
local log = folder .. "/log"
os.remove(log)

local function first_line(command)
  local pipe = assert(io.popen(command))
  local line = pipe:read "*l"
  pipe:read "*a"
  pipe:close()
  return line
end

local torch = first_line "python3 -c 'import torch; print(torch.__version__)' 2>/dev/null"

local function say(...) io.stderr:write("  ", string.format(...), "\n") end

local function median(list)
  local sorted = { unpack(list) }
  table.sort(sorted)
  local n = #sorted
  return n > 0 and (sorted[math.floor((n + 1) / 2)] + sorted[math.floor((n + 2) / 2)]) / 2 or nil
end

local function ours() return Worker.start(build .. "/resin bench/ours.lua", log) end
local function python() return Worker.start("python3 bench/peers.py", log) end

local function peers_of(row)
  local list = {}
  for _, peer in ipairs(torch and row.peers or {}) do
    if not wanted or wanted[peer] then list[#list + 1] = peer end
  end
  return list
end

local function name_of(row) return row.variant and row.workload .. "/" .. row.variant or row.workload end

-- ---- rounds ---------------------------------------------------------------------------------------------------------------

local processors = tonumber(first_line "nproc")

-- Seconds in which a processor was busy since the machine started.
local function busy()
  local line = first_line "head -1 /proc/stat"
  local sum, i = 0, 0
  for ticks in line:gmatch "%d+" do
    i = i + 1
    if i <= 8 and i ~= 4 and i ~= 5 then sum = sum + tonumber(ticks) end      -- not: idle, waiting, guests
  end
  return sum / 100
end

-- Asks all runs {name, block()} in turn, in rounds; block gives microseconds, and the processor seconds that it used or nil.
-- Gives {name = times} and how many processors others took from us in the noisiest round that counts.
local function rounds_of(runs, threads)
  local rounds, quiet, deadline, spare = {}, 0, resin.time() + patience, processors - threads
  repeat
    local round = { disturbed = 0 }
    for _, run in ipairs(runs) do
      local begin, before = resin.time(), busy()
      local us, cpu = run.block()
      local wall = resin.time() - begin
      round[run.name] = us
      if cpu then round.disturbed = math.max(round.disturbed, (busy() - before - cpu) / wall - spare) end
    end
    rounds[#rounds + 1] = round
    if round.disturbed <= QUIET then quiet = quiet + 1 else os.execute(patience > 0 and "sleep 0.5" or "true") end
  until #rounds >= ROUNDS and (quiet >= ROUNDS or resin.time() > deadline)
  table.sort(rounds, function(a, b) return a.disturbed < b.disturbed end)
  local times = {}
  for _, run in ipairs(runs) do
    times[run.name] = {}
    for i = 1, ROUNDS do times[run.name][i] = rounds[i][run.name] end
  end
  return times, rounds[ROUNDS].disturbed
end

-- Medians of the times, and of the ratios in each round.
local function fill(row, runs)
  local times, disturbed = rounds_of(runs, row.threads)
  row.peers, row.ratios, row.disturbed = {}, {}, disturbed
  local own = times.resin
  if own then row.ours_us = median(own) end
  for name, list in pairs(times) do
    if name ~= "resin" then
      row.peers[name] = median(list)
      local ratios = {}
      for i, us in ipairs(own or {}) do ratios[i] = list[i] / us end
      row.ratios[name] = median(ratios)
    end
  end
  return times
end

-- ---- time -----------------------------------------------------------------------------------------------------------------

-- Builds a run in a worker. Gives {name, difference, mode, block}; nil when it cannot be built; false when its result is wrong.
local function prepare(row, worker, peer, threads, file)
  local answer, problem = worker:ask("build", peer, peer == "resin" and name_of(row) or row.workload, row.dtype, threads, file,
    peer == "resin" and mode or nil)
  if not answer then
    say("%s: %s", peer, problem)
    return nil
  end
  local gap = tonumber(answer[2])
  if gap > TOLERANCE[row.dtype] or gap ~= gap then
    say("%s: MISMATCH: the result differs from PyTorch's by %.2g of its largest value (allowed: %g)", peer, gap, TOLERANCE[row.dtype])
    return false
  end
  local run = { name = peer, difference = file ~= "-" and gap or nil, mode = answer[3], least = math.huge, cpu = math.huge }
  local per = row.per or 1
  function run.block()
    local words = assert(worker:ask("run", peer, seconds / ROUNDS))
    run.least = math.min(run.least, tonumber(words[3]) / per)
    run.cpu = math.min(run.cpu, tonumber(words[4]) / tonumber(words[5]) / per * 1e6)
    return tonumber(words[2]) / per, tonumber(words[4])
  end
  return run
end

-- The row's program of ours instead of bench/ours.lua.
local function program(row)
  local run = { name = "resin", mode = "eager", least = math.huge }
  local path = build .. "/bench/" .. row.program
  function run.block()
    local pipe = assert(io.popen(path))
    local text = pipe:read "*a"
    pipe:close()
    local us = tonumber(text:match(row.figure .. " ([%d.]+)")) / 1000
    run.least = math.min(run.least, us)
    return us
  end
  return run
end

local function measure_time(row, threads, result)
  local own, other = ours(), torch and python()
  local file, peers, runs, wrong = "-", peers_of(row), {}, false
  if torch and not row.program then
    file = ("%s/%s.safetensors"):format(folder, row.workload)
    local _, problem = other:ask("export", row.workload, file)
    if problem then error(problem, 0) end
  end
  local function add(run)
    wrong = wrong or run == false
    runs[#runs + 1] = run or nil
  end
  add(row.program and program(row) or prepare(row, own, "resin", threads, file))
  for _, peer in ipairs(peers) do add(prepare(row, other, peer, threads, file)) end
  local peaks
  if row.gflop then
    peaks = {}
    runs[#runs + 1] = { name = "peak", least = 0, block = function()
      local gflops = tonumber(first_line(("%s/peak %d 0.2"):format(folder, threads)))
      peaks[#peaks + 1] = gflops
      return row.gflop / gflops * 1e6
    end }
  end
  fill(result, runs)
  own:stop()
  if other then other:stop() end
  result.least_us, result.cpu_us = {}, {}
  for _, run in ipairs(runs) do
    result.least_us[run.name], result.cpu_us[run.name] = run.least, run.cpu
    if run.name == "resin" then result.difference, result.mode = run.difference, run.mode end
  end
  if row.gflop then
    result.least_us.peak, result.peers.peak = nil, nil
    result.share_of_peak, result.ratios.peak, result.peak_gflops = result.ratios.peak, nil, median(peaks)
  end
  return wrong
end

-- ---- memory ---------------------------------------------------------------------------------------------------------------

-- The peak of a process that makes the model and takes a few steps, and does nothing else.
local function peak_memory(worker, peer, row, threads)
  local answer, problem = worker:ask("build", peer, row.workload, row.dtype, threads, "-")
  if not answer then say("%s: %s", peer, problem) end
  for _ = 1, answer and 4 or 0 do assert(worker:ask("run", peer, 0)) end
  local words = answer and assert(worker:ask "memory")
  worker:stop()
  return words and tonumber(words[2]) / 1024, answer and answer[3]
end

local function measure_memory(row, threads, result)
  result.peers = {}
  result.ours_mb, result.mode = peak_memory(ours(), "resin", row, threads)
  result.ratios = {}
  for _, peer in ipairs(peers_of(row)) do
    result.peers[peer] = peak_memory(python(), peer, row, threads)
    result.ratios[peer] = result.ours_mb and result.peers[peer] and result.peers[peer] / result.ours_mb
  end
  return false
end

-- ---- start ----------------------------------------------------------------------------------------------------------------

local function measure_start(row, threads, result)
  if not torch then return false end       -- the weights come from there
  local file, runs = ("%s/%s"):format(folder, row.workload), {}
  local other = python()
  assert(other:ask("export", row.workload, file .. ".safetensors"))
  other:ask("onnx", row.workload, file .. ".onnx")
  other:stop()
  local sums = {}
  local function add(name, command)
    runs[#runs + 1] = { name = name, block = function()
      local begin = resin.time()
      sums[name] = tonumber(first_line(command))
      return (resin.time() - begin) * 1e6
    end }
  end
  add("resin", ("%s/resin bench/start.lua %s.safetensors 2>>%s"):format(build, file, log))
  for _, peer in ipairs(peers_of(row)) do
    add(peer, ("OMP_NUM_THREADS=%d python3 bench/start.py %s %s 2>>%s"):format(threads, peer, file ..
      (peer == "onnxruntime" and ".onnx" or ".safetensors"), log))
  end
  fill(result, runs)
  result.difference = sums.eager and math.abs(sums.resin - sums.eager) / math.abs(sums.eager)
  result.mode = "eager"
  return (result.difference or 0) > TOLERANCE.f32
end

-- ---- all rows -------------------------------------------------------------------------------------------------------------

local MEASURES = { time = measure_time, memory = measure_memory, start = measure_start }

local function is_wanted(row)
  local dtype, measure = option("--dtype", row.dtype), option("--measure", row.measure)
  return (not only or only[row.workload] or only[row.group]) and row.dtype == dtype and row.measure == measure
end

local function cell(value) return value and (value < 1000 and "%.2f" or "%.0f"):format(value) or "" end

local LINE = "%-30s %-4s %2s %11s %11s %13s %11s %11s %6s %8s  %s"

local function line_of(r)
  local goal, met = results.goal(r)
  local name = name_of(r) .. (r.measure == "memory" and " memory, MB" or r.measure == "start" and " start" or "")
  local more = { r.mode }
  for _, peer in ipairs { "torch-circuit", "torchresidual", "eager-f32" } do
    if r.peers[peer] then more[#more + 1] = peer .. " " .. cell(r.peers[peer]) end
  end
  if r.share_of_peak then more[#more + 1] = ("%.0f %% of %.0f GFLOP/s"):format(100 * r.share_of_peak, r.peak_gflops) end
  if r.disturbed and r.disturbed > QUIET then more[#more + 1] = ("(disturbed: %.2f)"):format(r.disturbed) end
  if goal ~= "" then more[#more + 1] = "goal " .. goal .. (met == nil and "" or met and ": met" or ": not met") end
  return LINE:format(name, r.dtype, r.threads, cell(r.ours_us or r.ours_mb), cell(r.peers.eager), cell(r.peers.channels_last),
    cell(r.peers.compile), cell(r.peers.onnxruntime), r.ratio_best and ("%.2f"):format(r.ratio_best) or "",
    r.difference and ("%.0e"):format(r.difference) or "", table.concat(more, ", "))
end

print(torch and "peers: PyTorch " .. torch or "peers: PyTorch is not installed; only our figures follow")
print(LINE:format("workload", "type", "th", "ours us", "eager", "channels_last", "compile", "onnxruntime", "ratio", "differs", ""))
local whole, bad = torch and mode == "program" and not wanted, false
for _, row in ipairs(rows) do
  if is_wanted(row) then
    for threads in option("--threads", "1,2"):gmatch "%d+" do
      local result = { workload = row.workload, variant = row.variant, measure = row.measure, dtype = row.dtype,
        threads = tonumber(threads), goal = row.goal, peers = {} }
      bad = MEASURES[row.measure](row, tonumber(threads), result) or bad
      for _, ratio in pairs(result.ratios or {}) do result.ratio_best = math.min(result.ratio_best or math.huge, ratio) end
      print(line_of(result))
      io.flush()
      if whole then results.put(RESULTS, result) end
    end
  end
end
if whole then results.write_page(PAGE, results.read(RESULTS)) end
os.exit(bad and 1 or 0)
