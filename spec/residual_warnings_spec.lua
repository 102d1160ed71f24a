-- What is said when a container is made: names that nobody records, names that do not get in, unnamed pairs; and where warnings go.

local resin = require "resin"
local nn = resin.nn
local S, R, A = nn.ResidualSequential, nn.Record, nn.Apply

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

-- The warnings while fn runs.
local function warnings(fn, ...)
  local list = {}
  local before = resin.set_warnings(function(text) list[#list + 1] = text end)
  local ok, message = pcall(fn, ...)
  resin.set_warnings(before)
  assert(ok, message)
  return list
end

local function warns(text, fn, ...)
  local list = warnings(fn, ...)
  assert.equal(1, #list, table.concat(list, "\n"))
  assert.is_truthy(list[1]:find(text, 1, true), list[1])
end

local function quiet(fn, ...) assert.same({}, warnings(fn, ...)) end

describe("a name that nobody records", function()
  it("is told at construction, with the line", function()
    warns('ResidualSequential: Apply 3: there is no Record "zzzz" before it (known: "a"); if it is a Record of a container around this '
      .. "one, say outer = true", function() S(R("a"), nn.Linear(2, 2), A("add", "zzzz")) end)
    warns('residual_warnings_spec.lua:', function() S(nn.Linear(2, 2), A("add", "r")) end)
    warns('GetInput 3: there is no SaveInput "skip" before it (known: "residual")', function()
      nn.Circuit(nn.SaveInput("residual"), nn.Linear(2, 2), nn.GetInput("skip"))
    end)
    warns('there is no Record "b" before it (known: "a")', function() S(R("a"), A{records = {"a", "b"}}) end)
    quiet(function() S(R("a"), nn.Linear(2, 2), A("add", "a")) end)
  end)

  it("is told after an edit too, and once by the container that it was put into", function()
    warns('Apply 2: there is no Record "r" before it', function() S(R("r"), nn.ReLU(), A("add", "r")):remove(1) end)
    warns('Apply 2: there is no Record "far" before it', function() S(R("x"), S(S(nn.ReLU(), A("add", "far")))) end)
  end)

  it("is not told when outer = true says where it is", function()
    local x = resin.ones(1)
    quiet(function()
      local inner = S(nn.ReLU(), A{record_name = "far", outer = true})
      assert.equal(2, S(R("far"), inner)(x):item())
      local several = S(R("near"), nn.ReLU(), A{records = {"near", "far"}, outer = true})
      assert.equal(3, S(R("far"), several)(x):item())
    end)
    fails("Apply: outer = true needs a record_name", A, {outer = true})
  end)

  it("of an inner container: says how to let it out", function()
    local m
    warns('; layer 1 (ResidualSequential) records it inside, where it stays: give that Record export = true', function()
      m = S(S(R("mid"), nn.ReLU()), A("add", "mid"))
    end)
    fails("records it inside, where it stays: give that Record export = true", m, resin.ones(1))
    quiet(function() S(S(R{name = "mid", export = true}, nn.ReLU()), A("add", "mid")) end)
  end)
end)

describe("a name that does not get in", function()
  it("names the layer that keeps it out, at construction and when it runs", function()
    local function inner() return S(nn.ReLU(), A{record_name = "r", outer = true}) end
    local User = nn.class("User")
    function User:init(body) self.body = body end
    function User:forward(x) return self.body(x) end
    for what, layer in pairs{
      Checkpoint = nn.Checkpoint(inner()), Parallel = nn.Parallel(inner(), nn.Identity()), Dense = nn.Dense(inner()),
      HyperConnections = nn.HyperConnections(inner()), User = User(nn.Sequential(inner())),
    } do
      local m
      warns(('layer 2 (%s) holds a ResidualSequential whose Apply 2 reads Record "r" of this container, but names do not reach into a %s')
        :format(what, what), function() m = S(R("r"), layer, A("add", "r")) end)
      fails(('there is no Record "r" before it (known: none); a container around this one has it, but names do not reach into a %s')
        :format(what), m, resin.ones(1, 2))
    end
    quiet(function() S(R("r"), nn.Checkpoint(S(R("r"), S(A{record_name = "r", outer = true}))), A("add", "r")) end)
  end)
end)

describe("unnamed pairs", function()
  it("that could be meant otherwise are told", function()
    warns('Apply 5 and Apply 6 both read the Record that ran last, 3 ("record_2"), and nobody reads 1 ("record_1"); name the one that is '
      .. 'meant: Apply("add", "record_1")', function() S(R(), nn.ReLU(), R(), nn.ReLU(), A(), A()) end)
    quiet(function()
      S(R(), nn.ReLU(), A(), R(), nn.ReLU(), A())
      S(R(), nn.ReLU(), A(), nn.ReLU(), A())
      S(R(), nn.ReLU(), R(), nn.ReLU(), A(), A("add", "record_1"))
      S(R("stem"), nn.ReLU(), R(), A(), nn.ReLU(), A())
    end)
  end)

  it("show their names when the container is printed", function()
    local m = S(R("record_1"), nn.ReLU(), R(true), S(R(), A()), A("add", "record_2"))
    local text = tostring(m)
    assert.is_truthy(text:find('[3] Record{name = "record_2", need_projection = true}', 1, true), text)
    assert.is_truthy(text:find('    [1] Record{name = "record_1"}', 1, true), text)
    assert.equal("Record{need_projection = true}", m[3]:label())
  end)
end)

describe("warnings", function()
  it("come once for each place and each text", function()
    assert.equal(1, #warnings(function()
      for _ = 1, 5 do S(A("add", "r")) end
    end))
    assert.equal(2, #warnings(function()
      S(A("add", "r"))
      S(A("add", "r"))
    end))
  end)

  it("go where set_warnings says; false is nowhere", function()
    assert.is_false(resin.set_warnings(nil))        -- the helper's
    assert.is_nil(resin.set_warnings(false))
    assert.is_false(resin.set_warnings(false))
    S(A("add", "r"))
    fails("set_warnings: argument 1 must be a function, got number 3", resin.set_warnings, 3)
  end)

  it("may be made errors; the change is taken back", function()
    local before = resin.set_warnings(function(text) error(text, 0) end)
    local m = S(R("r"), nn.ReLU())
    local ok, message = pcall(m.append, m, A("add", "none"))
    resin.set_warnings(before)
    assert.is_false(ok)
    assert.is_truthy(message:find('there is no Record "none" before it', 1, true), message)
    assert.equal(2, #m)
    assert.equal(2, m(resin.ones(2)):sum():item())
  end)

  it("there are none for resin's own models", function()
    local models = resin.models
    quiet(function()
      models.resnet18()
      models.unet(1, 2)
      models.transformer_encoder{vocabulary = 10, size = 8, layers = 2, heads = 2}
    end)
  end)
end)
