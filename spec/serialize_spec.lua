-- Saving and loading named tensors.

local resin = require "resin"

describe("save and load", function()
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  it("keep names, dtypes, shapes, values and meta", function()
    resin.save(path, { ["a.weight"] = resin.arange(6):reshape(2, 3), b = resin.tensor { true, false }, c = resin.tensor(0.5),
      d = resin.zeros(0, 4, { dtype = "f64" }), e = resin.tensor({ { 1, 2 }, { 3, 4 } }):t() }, { epoch = 3, name = "x" })
    local t, meta = resin.load(path, { metadata = true })
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t["a.weight"]:totable())
    assert.equal("i64", t["a.weight"].dtype)
    assert.same({ true, false }, t.b:totable())
    assert.equal(0.5, t.c:item())
    assert.same({ 0, 4 }, t.d.shape)
    assert.same({ { 1, 3 }, { 2, 4 } }, t.e:totable())
    assert.equal("3", meta.epoch)
    assert.equal("x", meta.name)
    assert.equal(1, select("#", resin.load(path)))
  end)

  it("take a module as it is", function()
    local nn = resin.nn
    local first, second = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    resin.save(path, first, { epoch = 3 })
    second:load_state_dict(resin.load(path))
    local x = resin.ones(2, 2)
    assert.same(first:eval()(x):totable(), second:eval()(x):totable())
  end)

  it("refuse a tensor that has no values", function()
    for _, n in ipairs { 3, 3000000 } do
      resin.save(path, { k = resin.ones(2) })
      local kept
      resin.compile(function(x)
        kept = x * 2
        return kept + 1
      end)(resin.ones(n))
      for _, t in ipairs { kept, kept:detach() } do
        local ok, message = pcall(resin.save, path, { a = resin.ones(2), k = t })
        assert.is_false(ok)
        assert.truthy(message:find("tensor \"k\" was made while a program was recorded, so it has a shape but no values", 1, true), message)
      end
      assert.same({ 1, 1 }, resin.load(path).k:totable())      -- the file that was there still is
    end
  end)

  it("say what is wrong, at the user's line", function()
    local function fails(text, ...)
      local ok, message = pcall(...)
      assert.is_false(ok)
      assert.truthy(message:find(text, 1, true), message)
      assert.truthy(message:find("serialize_spec.lua:%d+: "), message)
    end
    fails("No such file or directory", function() return resin.load("/nowhere/x.safetensors") end)
    fails("save: tensor a must be a tensor, got number 3", function() resin.save(path, { a = 3 }) end)
    fails("save: give names", function() resin.save(path, resin.ones(2)) end)
    fails("save: give names: {name = tensor}", function() resin.save(path, { resin.ones(2) }) end)
    fails("has a NUL byte", function() resin.save(path, { ["a\0b"] = resin.ones(2) }) end)
    fails("has a NUL byte", function() resin.save(path, { { "a\0b", resin.ones(2) } }) end)
    fails("has a NUL byte", function() resin.save(path .. "\0x", { a = resin.ones(2) }) end)
    fails("has a NUL byte", function() resin.save(path, { a = resin.ones(2) }, { k = "a\0b" }) end)
    fails("has a NUL byte", function() return resin.load(path .. "\0x") end)
    fails("idx: path", function() return resin.data.idx(path .. "\0x") end)
    fails('load: unknown option "meta" (known: metadata)', function() return resin.load(path, { meta = true }) end)
    fails("save: path must be a string, got nil", function() resin.save(nil, {}) end)
    local f = io.open(path, "wb")
    f:write("\255\255\255\255\255\255\255\127{}")
    f:close()
    fails(path, function() return resin.load(path) end)
  end)
end)
