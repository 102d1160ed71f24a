-- make bench: our time for each workload beside its peers', as a table and as bench/results.json.
--   --only NAME,NAME   some workloads      --threads 1,2   thread counts
-- Peers are measured by bench/peers.py when Python has PyTorch; otherwise their columns stay empty. Run it on an idle machine and
-- without OPENBLAS_CORETYPE (the Makefile sees to that). Ratios are time of the best peer over ours: above 1 we win.

local build = os.getenv("B") or "build"

local function lines_of(command)
  local list, pipe = {}, assert(io.popen(command))
  for line in pipe:lines() do list[#list + 1] = line end
  local ok = pipe:close()
  return list, ok
end

local function figures(command)
  local found = {}
  for _, line in ipairs(lines_of(command)) do
    local name, value = line:match("^([%w_]+) ([%d.]+)$")
    if name then found[name] = tonumber(value) end
  end
  return found
end

local function has_torch()
  local out = lines_of("python3 -c 'import torch; print(torch.__version__)' 2>/dev/null")
  return out[1]
end

-- name -> function(threads) returning {{workload, microseconds, goal in microseconds}}
local workloads = {
  eager = function()
    os.execute("make -s B=" .. build .. " " .. build .. "/bench/eager")
    local c, lua = figures(build .. "/bench/eager"), figures(build .. "/resin bench/eager.lua")
    return {
      { workload = "eager-op", variant = "C", us = c.forward / 1e3, goal = 0.150 },
      { workload = "eager-backward-node", variant = "C", us = c.backward / 1e3, goal = 0.100 },
      { workload = "eager-op", variant = "Lua, finaliser", us = lua.forward / 1e3, goal = 1.0 },
      { workload = "eager-op", variant = "Lua, scope", us = lua.scope / 1e3, goal = 0.200 },
      { workload = "eager-op-backward", variant = "Lua, finaliser", us = lua.forward_backward / 1e3 },
    }
  end,
  residual = function(threads)
    local rows = {}
    for _, form in ipairs { "container", "hand" } do
      local f = figures(build .. "/resin bench/residual.lua " .. form .. " " .. threads)
      rows[#rows + 1] = { workload = "residual-block", variant = form, us = f.forward }
      rows[#rows + 1] = { workload = "residual-block-step", variant = form, us = f.step }
    end
    return rows
  end,
}
local order = { "eager", "residual" }

local function option(name, default)
  for i = 1, #arg do
    if arg[i] == name and arg[i + 1] ~= "" then return arg[i + 1] end
  end
  return default
end

local only, thread_list = option("--only", ""), option("--threads", "1,2")
local torch = has_torch()
local results = {}
print(torch and "peers: PyTorch " .. torch or "peers: PyTorch is not installed; only our figures follow")
print(string.format("%-22s %-16s %8s %12s %12s %8s %s", "workload", "variant", "threads", "ours us", "torch us", "ratio", "goal us"))
for _, name in ipairs(order) do
  if only == "" or ("," .. only .. ","):find("," .. name .. ",", 1, true) then
    for threads in thread_list:gmatch("%d+") do
      local peers = {}
      if torch then
        for _, line in ipairs(lines_of("python3 bench/peers.py " .. name .. " " .. threads)) do
          local workload, peer, _, us = line:match("^(%S+) (%S+) (%d+) (%S+)$")
          if workload then
            peers[workload] = peers[workload] or {}
            peers[workload][peer] = tonumber(us)
          end
        end
      end
      for _, row in ipairs(workloads[name](tonumber(threads))) do
        local best
        for _, us in pairs(peers[row.workload] or {}) do best = math.min(best or us, us) end
        print(string.format("%-22s %-16s %8s %12.4f %12s %8s %s", row.workload, row.variant, threads, row.us,
          best and string.format("%.4f", best) or "", best and string.format("%.1f", best / row.us) or "", row.goal or ""))
        results[#results + 1] = { workload = row.workload .. " (" .. row.variant .. ")", dtype = "f32",
          threads = tonumber(threads), ours_us = row.us, peers = peers[row.workload] or {}, ratio_best = best and best / row.us }
      end
    end
  end
end

local function quote(s) return '"' .. s:gsub('["\\]', "\\%0") .. '"' end
local out = assert(io.open("bench/results.json", "w"))
out:write("[\n")
for i, r in ipairs(results) do
  local peers = {}
  for peer, us in pairs(r.peers) do peers[#peers + 1] = quote(peer) .. ": " .. us end
  table.sort(peers)
  out:write(string.format('  {"workload": %s, "dtype": %s, "threads": %d, "ours_us": %.4f, "peers": {%s}, "ratio_best": %s}%s\n',
    quote(r.workload), quote(r.dtype), r.threads, r.ours_us, table.concat(peers, ", "),
    r.ratio_best and string.format("%.2f", r.ratio_best) or "null", i < #results and "," or ""))
end
out:write("]\n")
out:close()
