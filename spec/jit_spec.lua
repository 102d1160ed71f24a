-- The path of an op is compiled: a loop of ops has traces and no aborts that would leave it interpreted.

local resin = require "resin"
local scope = require "resin.scope"
local create = require "resin.create"

local on = jit.status()
local case = on and it or pending

-- Traces that were made, and reasons of aborts, while fn ran.
local function traces(fn)
  local made, aborts = 0, {}
  local function watch(what, _, _, _, code)
    if what == "stop" then made = made + 1 end
    if what == "abort" then aborts[code] = (aborts[code] or 0) + 1 end
  end
  jit.flush()
  jit.attach(watch, "trace")
  fn()
  jit.attach(watch)
  return made, aborts
end

-- Reasons that name a bytecode, a function or a conversion that is never compiled. A trace that would leave the frame it began
-- in is tried again from another place.
local function unsupported(aborts)
  local n = 0
  for code, count in pairs(aborts) do
    local text = require("jit.vmdef").traceerr[code] or ""
    if text:find("NYI", 1, true) and not text:find("lower frame", 1, true) then n = n + count end
  end
  return n
end

describe("the compiler", function()
  case("compiles ops, with and without a scope", function()
    local a, b = resin.ones(16, { requires_grad = true }), resin.ones(16)
    local function body()
      local c = a * b + 2
      return c:relu():sum(1, true):reshape(1, 1)
    end
    local function free()
      for _ = 1, 300 do body() end
    end
    local function scoped()
      for _ = 1, 300 do scope.run(body) end
    end
    for _, fn in ipairs { free, scoped } do
      local made, aborts = traces(fn)
      assert.is_true(made > 0)
      assert.equal(0, unsupported(aborts))
    end
  end)

  case("reads arguments right after compiling", function()
    for i = 1, 400 do
      local t = create.empty({ 2, 3 }, { dtype = "f64" })
      if t.ndim ~= 2 or t:size(2) ~= 3 then error("wrong shape in step " .. i) end
      local u = create.zeros(2, 3, { dtype = "f64" })
      if u.dtype ~= "f64" or u:size(1) ~= 2 then error("wrong tensor in step " .. i) end
    end
  end)
end)
