-- Changing containers after they were made: children by name and number, options that plans are made of, projections that the change
-- made useless; and what a call is told when it is written wrongly.

local resin = require "resin"
local nn, optim = resin.nn, resin.optim
local S, R, A = nn.ResidualSequential, nn.Record, nn.Apply

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function times(k) return nn.Lambda(function(x) return x * k end) end

local function value(model, x) return model(resin.tensor{{x}}):item() end

describe("children by name", function()
  it("assignment puts a module into the place of the one that is there", function()
    for _, class in ipairs{S, nn.Sequential} do
      local m = class{{"a", times(2)}, {"l", times(3)}, times(5)}
      m.l = times(7)
      assert.equal(3, #m)
      assert.equal(70, value(m, 1))
      assert.equal(m[2], m.l)
      m["2"] = function(x) return x * 11 end
      assert.equal(154, value(m, 1))
      m.other = "text"
      assert.equal("text", m.other)
      fails('child cannot be set to nil; remove("l") takes it out', function() m.l = nil end)
      fails("entry 2 must be a module or a function, got number 3", function() m.l = 3 end)
      assert.equal(154, value(m, 1))
    end
    local m = S{{"r", R("r")}, {"l", nn.Linear(2, 2)}, {"join", A("add", "r")}}
    m.l = nn.Linear(2, 2)
    assert.equal(2, #m:parameters())
    fails("is given twice", function() m.l = R("r") end)
    assert.equal("Linear", m.l.type)
    fails("its layers are given at construction", function() resin.models.resnet18()[5][1].conv1 = nn.Identity() end)
    local hyper = nn.HyperConnections{{"a", nn.Linear(4, 4)}, streams = 2}
    hyper.a = nn.Tanh()
    assert.same({2, 4}, hyper(resin.ones(2, 4)).shape)
  end)

  it("remove takes a name too", function()
    local m = S{{"a", times(2)}, {"l", times(3)}, times(5)}
    local l = m.l
    assert.equal(l, m:remove("l"))
    assert.equal(10, value(m, 1))
    assert.equal(2, #m)
    fails('remove: there is no child "l" (children: a, 1)', m.remove, m, "l")
    local c = nn.Circuit{{"a", times(2)}, {"l", times(3)}}
    c:remove("a")
    assert.equal(3, value(c, 1))
  end)
end)

describe("children set to nil", function()
  it("are an error when others stand behind", function()
    for _, class in ipairs{S, nn.Sequential} do
      local m = class(times(2), times(3), times(5))
      m[2] = nil
      fails("child 2 was set to nil, which hides the children behind it; put it back and use remove(2)", m, resin.ones(1))
      fails("child 2 was set to nil", m.parameters, m)
      fails("child 2 was set to nil", m.append, m, times(7))
    end
    local inner = S(times(2), times(3))
    local m = S(R("r"), inner, A("add", "r"))
    inner[1] = nil
    fails("child 1 was set to nil", m, resin.ones(1))
  end)

  it("are taken out at the end", function()
    for _, class in ipairs{S, nn.Sequential} do
      local m = class(times(2), times(3), times(5))
      m[3] = nil
      assert.equal(6, value(m, 1))
      m:append(times(7), "last")
      assert.equal(42, value(m, 1))
      assert.equal(m[3], m.last)
    end
  end)
end)

describe("what plans are made of", function()
  it("cannot be changed silently", function()
    local m = S(R("a"), R("b"), times(3), A("add", "a"))
    for _, change in ipairs{
      {m[4], "record_name", "b"}, {m[4], "operation", "subtract"}, {m[4], "records", {"a", "b"}}, {m[4], "outer", true},
      {m[1], "name", "c"}, {m[1], "export", true}, {m[1], "transform", times(2)},
    } do
      fails(("%s: %s cannot be changed, because plans of containers are made of it"):format(change[1].type, change[2]), function()
        change[1][change[2]] = change[3]
      end)
    end
    m[4].record_name = "a"          -- as it is
    assert.equal(4, value(m, 1))
    m[4].alpha = 2                  -- read at each call
    assert.equal(5, value(m, 1))
    m[4] = A("add", "b", 3)
    assert.equal(6, value(m, 1))
    assert.equal("b", m[4].record_name)
    local circuit = nn.Circuit(nn.StartBlock("x", 2), nn.SaveInput("r"), times(2), nn.GetInput("r"), nn.EndBlock("x"))
    assert.equal("r_repeat_1", circuit[4].name)
    fails("GetInput: record_name cannot be changed", function() circuit[6].record_name = "r_repeat_0" end)
    local copy = m:clone()
    assert.equal("b", copy[4].record_name)
    fails("Apply: record_name cannot be changed", function() copy[4].record_name = "a" end)
  end)
end)

describe("projections of ours after a change", function()
  local x = resin.randn(2, 4)

  it("are made anew for other widths", function()
    local m = S(R{name = "r", need_projection = true}, nn.Linear(4, 6), A("add", "r"))
    local opt = optim.SGD(m, {lr = 0.1})
    assert.equal("Linear(4, 6)", m[3].projection_layer:label())
    m[2] = nn.Linear(4, 8)
    assert.same({2, 8}, m(x).shape)
    assert.equal("Linear(4, 8)", m[3].projection_layer:label())
    local before = m[3].projection_layer.weight:clone()
    m(x):sum():backward()
    opt:step()
    assert.is_true((m[3].projection_layer.weight - before):abs():sum():item() > 0)
    m:insert(3, nn.Linear(8, 5))
    assert.equal("Linear(4, 5)", m[4].projection_layer:label())
    assert.same({2, 5}, m(x).shape)
  end)

  it("go when nothing needs them", function()
    local m = S(R{name = "r", need_projection = true}, nn.Linear(4, 6), nn.Linear(6, 4), A("add", "r"))
    m:remove(3)
    assert.equal("Linear(4, 6)", m[3].projection_layer:label())
    m:insert(3, nn.Linear(6, 4))
    assert.is_false(m[4].projection_layer)
    assert.equal(4, #m:parameters())
    assert.is_nil(tostring(m):find("projection_layer"))
    assert.same({2, 4}, m(x).shape)
    -- where only a forward can know
    local late = S(R{name = "r", need_projection = true}, function(t) return resin.cat({t, t}, 2) end, A("add", "r"))
    assert.same({2, 8}, late(x).shape)
    assert.equal("Linear(4, 8)", late[3].projection_layer:label())
    late[2] = function(t) return t * 2 end
    assert.same({2, 4}, late(x).shape)
    assert.equal(0, #late:parameters())
    late[2] = function(t) return resin.cat({t, t, t}, 2) end
    assert.same({2, 12}, late(x).shape)
    assert.equal("Linear(4, 12)", late[3].projection_layer:label())
  end)

  it("keep their weights when they still fit, and the stride follows", function()
    local m = S(R{name = "r", need_projection = true}, nn.Conv2d(3, 6, 3, {padding = 1}), A("add", "r"))
    local kept = m[3].projection_layer
    m:insert(3, nn.ReLU())
    assert.equal(kept, m[4].projection_layer)
    m[2] = nn.Conv2d(3, 6, 3, {padding = 1, stride = 2})
    assert.same({1, 6, 4, 4}, m(resin.randn(1, 3, 8, 8)).shape)
    assert.equal(kept, m[4].projection_layer)
    assert.equal(2, kept.stride)
  end)

  it("leave the user's own alone, and a change that fails changes nothing", function()
    local own = nn.Linear(4, 6)
    local m = S(R("r"), nn.Linear(4, 6), A{record_name = "r", projection = own})
    m[2] = nn.Linear(4, 8)
    fails("does not make them fit", m, x)
    assert.equal(own, m[3].projection_layer)
    local n = S(R{name = "r", need_projection = true}, nn.Linear(4, 6), A("add", "r"), R("s"), nn.ReLU(), A("add", "s"))
    local kept = n[3].projection_layer
    fails('recorded [?, 6] but current is [?, 7]', n.insert, n, 6, nn.Linear(6, 7))
    assert.equal(kept, n[3].projection_layer)
    assert.same({2, 6}, n(x).shape)
  end)
end)

describe("mistakes in a call", function()
  it("a dot instead of a colon", function()
    local m = S(R("r"), A("add", "r"))
    fails("forward was called with a dot: write block:forward(x), or block(x)", m.forward, resin.ones(1))
    fails("forward was called with a dot: write seq:forward(x), or seq(x)", nn.Sequential(nn.ReLU()).forward, resin.ones(1))
  end)

  it("a second value behind the name of a Record", function()
    fails('Record: behind the name comes a table of options, got true: Record{"n", need_projection = true} or Record(true, "n")',
      R, "n", true)
    assert.is_true(R("n", {need_projection = true}).need_projection)
  end)

  it("blocks of other shapes in an InputForward", function()
    local m = resin.blocks.InputForward({nn.Linear(4, 4), nn.Linear(4, 5)}, "add")
    fails('InputForward: block 2 (Linear) gives [2, 5], which does not fit [2, 4] of the blocks before it; "add" needs equal shapes',
      m, resin.randn(2, 4))
  end)
end)
