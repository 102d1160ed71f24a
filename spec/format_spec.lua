-- Tensors as text.

local resin = require "resin"
local format = require "resin.format"

describe("printing", function()
  it("shows values and what the tensor is", function()
    assert.equal("{{1, 2, 3},\n {4, 5, 6}}\ntensor 2x3 f32  min 1 max 6 mean 3.5",
      tostring(resin.tensor { { 1, 2, 3 }, { 4, 5, 6 } }))
    assert.equal("{-1.5000,  0.2500}\ntensor 2 f32 grad  min -1.5 max 0.25 mean -0.625",
      tostring(resin.tensor({ -1.5, 0.25 }, { requires_grad = true })))
  end)

  it("shows scalars, empty tensors, integers and bools", function()
    assert.equal("3.2500\ntensor 0-d f32", tostring(resin.tensor(3.25)))
    assert.equal("{}\ntensor 0x3 f32", tostring(resin.zeros(0, 3)))
    assert.equal("{ 1, 20}\ntensor 2 i64  min 1 max 20 mean 10.5", tostring(resin.tensor({ 1, 20 }, { dtype = "i64" })))
    assert.equal("{ true, false}\ntensor 2 bool  1 of 2 true", tostring(resin.tensor { true, false }))
  end)

  it("uses one format for all numbers", function()
    assert.equal("{1.0000e-08, 2.0000e-09}", tostring(resin.tensor { 1e-8, 2e-9 }):match("^[^\n]*"))
    assert.equal("{1.0000e+08, 1.5000e+00}", tostring(resin.tensor { 1e8, 1.5 }):match("^[^\n]*"))
  end)

  it("warns of NaN and Inf", function()
    local text = tostring(resin.tensor { 0 / 0, 1 / 0, -1 / 0, 1 })
    assert.truthy(text:find("{ nan,  inf, -inf,    1}", 1, true), text)
    assert.truthy(text:find("WARNING: 1 NaN, 2 Inf", 1, true), text)
  end)

  it("shows only the edges of a large tensor, and ranges over all of it", function()
    local t = resin.zeros(600, 700)
    t[300][400] = 7
    local text = tostring(t)
    assert.equal("{{0, 0, 0, ..., 0, 0, 0},", text:match("^[^\n]*"))
    assert.truthy(text:find("\n ...,\n", 1, true))
    assert.truthy(text:find("max 7", 1, true))
    local lines = select(2, text:gsub("\n", ""))
    assert.equal(7, lines)
    assert.truthy(tostring(resin.zeros(3, 4, 5, 6, 7, 2)):find("tensor 3x4x5x6x7x2 f32", 1, true))
    assert.truthy(tostring(resin.zeros(100000)):find("{0, 0, 0, ..., 0, 0, 0}", 1, true))
  end)

  it("does not depend on strides and records nothing", function()
    local t = resin.tensor({ { 1, 2 }, { 3, 4 } }, { requires_grad = true }):t()
    assert.equal("{{1, 3},\n {2, 4}}", tostring(t):match("^(.-)\ntensor"))
    assert.is_true(resin.is_grad_enabled())
    assert.equal("tensor 2x2 f32 grad  min 1 max 4 mean 2.5", format.summary(t))
  end)
end)
