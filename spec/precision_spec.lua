-- resin.set_precision: "highest" convolves without Winograd's form; compiled functions follow the change.

local resin = require "resin"
local nn = resin.nn

-- The largest difference from f64, relative to the largest value.
local function error_of(y, exact) return (y:to "f64" - exact):abs():amax():item() / exact:abs():amax():item() end

describe("precision", function()
  after_each(function() resin.set_precision "default" end)

  it("is default or highest", function()
    assert.equal("default", resin.get_precision())
    resin.set_precision "highest"
    assert.equal("highest", resin.get_precision())
    assert.has_error(function() resin.set_precision "low" end)
  end)

  it("bounds the error of convolutions", function()
    resin.manual_seed(3)
    local conv = nn.Conv2d(64, 64, 3, { padding = 1 }):eval()
    local wide = conv:clone():double()
    local x = resin.randn { 4, 64, 32, 32 }
    resin.set_grad_enabled(false)
    local exact = wide(x:to "f64")
    local fast = resin.compile(conv)
    local loose, quick = error_of(conv(x), exact), error_of(fast(x), exact)
    resin.set_precision "highest"
    local tight, compiled = error_of(conv(x), exact), error_of(fast(x), exact)
    resin.set_grad_enabled(true)
    -- documented in docs/performance.md: 576 terms in f32 give about 3e-7, Winograd's F(4x4, 3x3) about 2e-6
    for _, e in ipairs { tight, compiled } do assert.is_true(e < 1.5e-6, e) end
    for _, e in ipairs { loose, quick } do assert.is_true(e < 2e-5, e) end
  end)

  it("bounds the error of programs in bf16", function()
    resin.manual_seed(4)
    resin.set_grad_enabled(false)
    for _, layer in ipairs { nn.Conv2d(64, 64, 3, { padding = 1 }), nn.Conv2d(32, 96, 1), nn.Linear(32, 512) } do
      layer:eval()
      local x = resin.randn { 4, layer.type == "Linear" and 32 or layer.in_channels, 32, 32 }
      local e = error_of(resin.compile(layer, { precision = "bf16" })(x), layer:clone():double()(x:to "f64"))
      assert.is_true(e < 1e-2, e)
    end
    resin.set_grad_enabled(true)
  end)

  -- oneDNN 2.6's own 1x1 forms in bf16 are wrong for some of these.
  it("bounds the error of 1x1 convolutions in bf16 for every number of pixels", function()
    resin.manual_seed(5)
    resin.set_grad_enabled(false)
    for _, c in ipairs { { 32, 48 }, { 64, 128 }, { 3, 5 }, { 15, 30 }, { 1, 1 }, { 32, 32 } } do
      for _, size in ipairs { { 3, 16 }, { 9, 10 }, { 5, 9 }, { 6, 7 }, { 1, 27 }, { 10, 24 }, { 1, 1 } } do
        local conv = nn.Conv2d(c[1], c[2], 1):eval()
        local x = resin.randn { 2, c[1], size[1], size[2] }
        local e = error_of(resin.compile(conv, { precision = "bf16" })(x), conv:clone():double()(x:to "f64"))
        assert.is_true(e < 1.5e-2, ("%d to %d channels, %d x %d: %g"):format(c[1], c[2], size[1], size[2], e))
      end
    end
    resin.set_grad_enabled(true)
  end)

  it("forbids programs in bf16", function()
    resin.set_precision "highest"
    local fast = resin.compile(nn.Linear(4, 4):eval(), { precision = "bf16" })
    assert.has_error(function() fast(resin.ones { 2, 4 }) end)
  end)
end)
