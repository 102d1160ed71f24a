-- resin.profile: what it counts, its table and its trace file.

local resin = require "resin"
local lib = require "resin.lib"

local nn, optim, F = resin.nn, resin.optim, resin.F
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local function fails(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(tostring(message):find(pattern), tostring(message))
end

local function row(profile, op, where)
  for _, r in ipairs(profile.rows) do
    if r.op == op and (not where or r.where == where) then return r end
  end
  error("no row for " .. op)
end

local function training_step()
  local model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
  local opt = optim.Adam(model)
  return resin.compile(function(x, y)
    opt:zero_grad()
    local loss = F.cross_entropy(model(x), y)
    loss:backward()
    opt:step()
    return loss
  end)
end

describe("resin.profile", function()
  it("counts kernels, their time and their bytes", function()
    local a, b = resin.randn(100, 50), resin.randn(50)
    local p = resin.profile(function()
      local y = a + b                      -- b is broadcast: it is read once
      y = y:t():contiguous()               -- a view, and a copy
      return y:mul_(y)
    end, { runs = 3 })
    local add, copy, mul = row(p, "add"), row(p, "copy"), row(p, "mul")
    for _, r in ipairs { add, copy, mul } do
      assert.equal(3, r.calls)
      assert.is_true(r.seconds > 0)
      assert.equal("eager", r.where)
      assert.is_nil(r.program)
    end
    assert.equal(3 * (5000 + 50 + 5000) * 4, add.bytes)
    assert.equal(3 * 2 * 5000 * 4, copy.bytes)
    assert.equal(3 * 3 * 5000 * 4, mul.bytes)
    assert.is_true(math.abs(add.rate - add.bytes / add.seconds) < 1)
    assert.equal(3, #p.rows)
    assert.equal(9, p.calls)
    assert.equal(0, p.dropped)
    assert.is_true(p.kernels <= p.seconds)
    local share, last = 0, math.huge
    for _, r in ipairs(p.rows) do
      share = share + r.share
      assert.is_true(r.seconds <= last)
      last = r.seconds
    end
    assert.is_true(math.abs(share - 1) < 1e-9)
  end)

  it("counts what an op writes in place twice, gradients and accumulation too", function()
    local w = resin.randn({ 10 }, { requires_grad = true })
    local opt = optim.SGD({ w }, { lr = 0.1 })
    local p = resin.profile(function()
      (w * w):sum():backward()
      opt:step()
    end, { runs = 2 })
    assert.equal(2 * (4 * 8 + 2 * 8 + 2 * 40 + 40), row(p, "sgd_step").bytes)      -- options, steps, parameter, gradient
    assert.is_true(row(p, "add").calls >= 1)
  end)

  it("sees the instructions of programs", function()
    local step = training_step()
    local x, y = resin.randn(4, 8), resin.randint(1, 4, { 4 })
    local p = resin.profile(function() step(x, y) end, { runs = 5, warm_up = 2 })
    assert.equal(5, row(p, "adam_step", "program 1").calls)
    assert.equal(1, p.programs)
    local q = resin.profile(function() step(x, y) end, { runs = 5, by = "instruction" })
    local seen = {}
    for _, r in ipairs(q.rows) do
      if r.program then
        assert.equal(5, r.calls)
        assert.is_nil(seen[r.instruction])
        seen[r.instruction] = true
        assert.equal("program 1 #" .. r.instruction, r.where)
      end
    end
    assert.is_true(#q.rows >= #p.rows)
  end)

  it("is a table in text", function()
    local x = resin.randn(10, 10)
    local p = resin.profile(function() return (x * 2):exp() end)
    local text = tostring(p)
    assert.is_truthy(text:find("^op +kernel +where +calls +total ms +%% +mean us +GB/s\n"), text)
    assert.is_truthy(text:find("\nexp +%w+ +eager +1 +"), text)
    assert.is_truthy(text:find("\n1 run, [%d.]+ ms: [%d.]+ ms in 2 kernels %([%d.]+ %%%), the rest between them$"), text)
    p = resin.profile(function() return (x * 2):exp() end, { rows = 1 })
    assert.is_truthy(tostring(p):find("\nand 1 row more: "), tostring(p))
    assert.is_truthy(tostring(resin.profile(function() end)):find("0 kernels"))
  end)

  it("drops and counts what does not fit", function()
    local x = resin.randn(3)
    local p = resin.profile(function()
      for _ = 1, 10 do x = x * 1 end
    end, { capacity = 4 })
    assert.equal(4, p.calls)
    assert.equal(6, p.dropped)
    assert.is_truthy(tostring(p):find("and 6 more that ran when the buffer was full: give capacity = 10 to see all", 1, true), tostring(p))
  end)

  it("writes a trace that says what ran when", function()
    local step = training_step()
    local x, y = resin.randn(4, 8), resin.randint(1, 4, { 4 })
    local path = os.tmpname()
    resin.profile(function() step(x, y) end, { runs = 4, trace = path })
    local file = assert(io.open(path))
    local text = file:read("*a")
    file:close()
    os.remove(path)
    assert.is_truthy(text:find('^{"displayTimeUnit": "ns", "traceEvents": %[\n'))
    assert.is_truthy(text:find("\n%]}\n$"))
    local kinds, last = {}, 0
    for line in text:gmatch("[^\n]+") do
      if line:find('"ph"', 1, true) then
        assert.is_truthy(line:find('^{"name": ".-", .*}+,?$'), line)
        local cat = line:match('"cat": "(%w+)"')
        if cat then kinds[cat] = (kinds[cat] or 0) + 1 end
        local ts = line:match('"cat": "program".-"ts": ([%d.]+)')
        if ts then
          assert.is_true(tonumber(ts) >= last)
          last = tonumber(ts)
        end
      end
    end
    assert.equal(4, kinds.run)
    assert.is_true(kinds.eager > 5 and kinds.program > 5)
    for _, part in ipairs { '"name": "process_name"', '"name": "program 1"', '"kernel": "adam_step"', '"instruction": ' } do
      assert.is_truthy(text:find(part, 1, true), part)
    end
    fails("profile: cannot write the trace: ", resin.profile, function() end, { trace = "/nowhere/at/all.json", runs = 1 })
  end)

  it("ends when the function fails, and says where it failed", function()
    fails("profile_spec.lua:%d+: mine", resin.profile, function() error("mine") end)
    local p = resin.profile(function() return resin.ones(2) end)
    assert.equal(1, p.calls)
  end)

  it("is one at a time", function()
    fails("profile: one is under way already in this context", resin.profile, function() resin.profile(function() end) end)
    assert.equal(0, C.rs_profile_end(ctx, nil))
  end)

  it("runs a function that yields", function()
    local x = resin.ones(2)
    local co = coroutine.wrap(function()
      return resin.profile(function()
        local y = x * 2
        coroutine.yield()
        return y * 3
      end)
    end)
    co()
    assert.equal(2, co().calls)
  end)

  it("checks its options", function()
    fails("profile: argument 1 must be a function, got number 1", resin.profile, 1)
    fails('profile: unknown option "run"', resin.profile, function() end, { run = 1 })
    fails("profile: runs must be an integer of at least 1", resin.profile, function() end, { runs = 0 })
    fails("profile: by must be one of op, instruction", resin.profile, function() end, { by = "layer" })
    fails("profile: trace must be a string", resin.profile, function() end, { trace = true })
  end)

  it("allocates nothing while it runs", function()
    local events = ffi.new("rs_profile_event[?]", 100)
    local x, out = resin.ones(4), ffi.new("rs_tensor *[1]")
    local array = ffi.new("rs_tensor *[2]", x.h, x.h)
    local function add_many()
      for _ = 1, 50 do
        C.rs_call(ctx, C.RS_OP_add, array, 2, nil, out)
        C.rs_tensor_release(out[0])
      end
    end
    add_many()
    local before = lib.stats.allocations
    add_many()
    local plain = lib.stats.allocations - before
    assert.equal(0, tonumber(C.rs_profile_begin(ctx, events, 100)))
    before = lib.stats.allocations
    add_many()
    assert.equal(plain, lib.stats.allocations - before)
    assert.equal(50, C.rs_profile_end(ctx, nil))
    assert.is_true(events[49].start >= events[0].start + events[0].seconds)
  end)
end)
