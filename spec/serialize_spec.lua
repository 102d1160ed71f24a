-- Saving and loading named tensors.

local resin = require "resin"

describe("save and load", function()
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  it("keep names, dtypes, shapes, values and meta", function()
    resin.save(path, { ["a.weight"] = resin.arange(6):reshape(2, 3), b = resin.tensor { true, false }, c = resin.tensor(0.5),
      d = resin.zeros(0, 4, { dtype = "f64" }), e = resin.tensor({ { 1, 2 }, { 3, 4 } }):t() }, { epoch = 3, name = "x" })
    local t, meta = resin.load(path)
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t["a.weight"]:totable())
    assert.equal("i64", t["a.weight"].dtype)
    assert.same({ true, false }, t.b:totable())
    assert.equal(0.5, t.c:item())
    assert.same({ 0, 4 }, t.d.shape)
    assert.same({ { 1, 3 }, { 2, 4 } }, t.e:totable())
    assert.equal("3", meta.epoch)
    assert.equal("x", meta.name)
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
    fails("save: path must be a string, got nil", function() resin.save(nil, {}) end)
    local f = io.open(path, "wb")
    f:write("\255\255\255\255\255\255\255\127{}")
    f:close()
    fails(path, function() return resin.load(path) end)
  end)
end)
