-- The checks that raise errors, and the path of layers in their texts.

local resin = require "resin"
local check = require "resin.check"

local function message_of(fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  return (message:gsub("^[^:]*:%d+: ", ""))
end

describe("check", function()
  it("returns good values", function()
    assert.equal(3, check.integer(3, "f: n"))
    assert.equal(0.5, check.number(0.5, "f: p", 0, 1))
    assert.equal("a", check.enum("a", "f: mode", { "a", "b" }))
    assert.equal(print, check.func(print, "f: fn"))
    assert.same({}, check.options(nil, { "a" }, "f"))
    assert.same({ a = 1 }, check.options({ a = 1 }, { a = true }, "f"))
  end)

  it("refuses bad ones with what was given", function()
    assert.equal("f: n must be an integer, got number 2.5", message_of(check.integer, 2.5, "f: n"))
    assert.equal("f: n must be an integer, got number nan", message_of(check.integer, 0 / 0, "f: n"))
    assert.equal("f: n must be an integer of at least 1, got number 0", message_of(check.integer, 0, "f: n", 1))
    assert.equal('f: n must be an integer from 1 to 8, got string "3"', message_of(check.integer, "3", "f: n", 1, 8))
    assert.equal("f: p must be a number from 0 to 1, got number 2", message_of(check.number, 2, "f: p", 0, 1))
    assert.equal("f: on must be a boolean, got nil", message_of(check.boolean, nil, "f: on"))
    assert.equal("f: mode must be one of a, b; got a table", message_of(check.enum, {}, "f: mode", { "a", "b" }))
    assert.equal("f: fn must be a function, got number 1", message_of(check.func, 1, "f: fn"))
    assert.equal("f: x must be a tensor, got a table", message_of(check.tensor, {}, "f: x"))
    assert.equal('f: unknown option "c" (known: a, b)', message_of(check.options, { c = 1 }, { "a", "b" }, "f"))
    assert.equal('f: unknown option "c" (known: a, b)', message_of(check.options, { c = 1 }, { b = true, a = true }, "f"))
    assert.equal("f: unknown option at position 1 (known: a)", message_of(check.options, { 5 }, { "a" }, "f"))
    assert.equal("f: options must be a table, got number 5", message_of(check.options, 5, { "a" }, "f"))
  end)

  it("describes values", function()
    assert.equal("tensor [2, 3] f32", check.describe(resin.ones(2, 3)))
    assert.equal('string "' .. ("x"):rep(37) .. '..."', check.describe(("x"):rep(50)))
    assert.equal("a function", check.describe(print))
  end)

  it("names the layers that run", function()
    local outer = check.push("Sequential", 2, "Residual")
    local inner = check.push("Residual", "body", "Linear")
    assert.equal("in Sequential 2 (Residual), Residual body (Linear): linear: no", message_of(check.fail, "linear: %s", "no"))
    check.pop(inner)
    check.pop(outer)
    assert.equal("100%", message_of(check.fail, "100%"))
  end)
end)
