--- Adam (Kingma and Ba, 2015) and AdamW (Loshchilov and Hutter, 2019).

local lib = require "resin.lib"
local check = require "resin.check"
local Optimizer = require "resin.optim.optimizer"

local C = lib.C
local attrs = lib.ffi.new("rs_adam_step_attrs")

local function share(value) return type(value) == "number" and value >= 0 and value < 1 end

local function check_betas(value, what)
  if type(value) ~= "table" or #value ~= 2 or not share(value[1]) or not share(value[2]) then
    local shown = check.describe(value)
    if type(value) == "table" and getmetatable(value) == nil then
      local parts = {}
      for i = 1, #value do parts[i] = tostring(value[i]) end
      shown = "{" .. table.concat(parts, ", ") .. "}"
    end
    check.fail("%s must be a table of two numbers from 0 to 1 (1 excluded), got %s", what, shown)
  end
  return value
end

local function define(name, decoupled, decay)
  local function update(group)
    group:prepare(true)
    attrs.n = group.n
    attrs.decoupled = decoupled and 1 or 0
    attrs.maximize = group.flags.maximize and 1 or 0
    group:run(C.RS_OP_adam_step, attrs)
  end
  return Optimizer.define{
    type = name,
    options = {
      {name = "lr", check = check.number, min = 0, default = 1e-3, slot = 0},
      {name = "betas", check = check_betas, default = {0.9, 0.999}, slot = 1, count = 2},
      {name = "eps", check = check.number, min = 0, default = 1e-8, slot = 3},
      {name = "weight_decay", check = check.number, min = 0, default = decay, slot = 4},
      {name = "maximize", check = check.boolean, default = false},
    },
    state_keys = {"exp_avg", "exp_avg_sq"},
    update = update,
    check_options = function() end,
  }
end

return {
  --- optim.Adam(params, {lr = 1e-3, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0, maximize = false}).
  Adam = define("Adam", false, 0),
  --- optim.AdamW(params, {lr = 1e-3, betas = {0.9, 0.999}, eps = 1e-8, weight_decay = 0.01, maximize = false}): weight decay
  --- shrinks the weights directly.
  AdamW = define("AdamW", true, 0.01),
}
