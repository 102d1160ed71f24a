-- Eager overhead from Lua: 16 elements, gradient on. Prints "name NS" lines, medians in nanoseconds per op.

local ffi = require "ffi"
local resin = require "resin"

ffi.cdef [[
typedef struct { long sec, nsec; } bench_time;
int clock_gettime(int clock, bench_time *out);
]]
local time = ffi.new("bench_time")
local function now()
  ffi.C.clock_gettime(1, time)
  return tonumber(time.sec) * 1e9 + tonumber(time.nsec)
end

local CHAIN, ROUNDS = 100, 601
local x = resin.ones(16)
local w = resin.ones(16, { requires_grad = true })

local function chain()
  local y = x
  for _ = 1, CHAIN do y = y * w end
  return y
end

local function median(fn)
  local times = {}
  for r = 1, ROUNDS do
    local begin = now()
    fn()
    times[r] = (now() - begin) / CHAIN
  end
  table.sort(times)
  return times[math.floor(ROUNDS / 2) + 1]
end

local function in_scope() resin.scope(chain) end

local seed = resin.ones(16)
local function forward_backward()
  local y = chain()
  y:backward(seed)
end

-- The collector runs as it would in a script; its cost is part of the first figure.
print(string.format("forward %.1f", median(chain)))
print(string.format("scope %.1f", median(in_scope)))
print(string.format("forward_backward %.1f", median(forward_backward)))
