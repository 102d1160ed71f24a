--- Stochastic gradient descent.

local lib = require "resin.lib"
local check = require "resin.check"
local Optimizer = require "resin.optim.optimizer"

local C = lib.C
local attrs = lib.ffi.new("rs_sgd_step_attrs")

local function update(group)
  group:prepare(group.buffered or group.momentum ~= 0)
  local flags = group.flags
  attrs.n = group.n
  attrs.nesterov = flags.nesterov and 1 or 0
  attrs.maximize = flags.maximize and 1 or 0
  group:run(C.RS_OP_sgd_step, attrs)
end

local function check_options(options, what)
  if options.nesterov and (options.momentum <= 0 or options.dampening ~= 0) then
    check.fail("%s: nesterov needs momentum above 0 and no dampening, got momentum %g and dampening %g", what, options.momentum,
      options.dampening)
  end
end

--- optim.SGD(params, {lr = 1e-3, momentum = 0, dampening = 0, weight_decay = 0, nesterov = false, maximize = false}).
--- params: a module, a list of tensors, or a list of groups {params = …, lr = …}.
return Optimizer.define{
  type = "SGD",
  options = {
    {name = "lr", check = check.number, min = 0, default = 1e-3, slot = 0},
    {name = "momentum", check = check.number, min = 0, default = 0, slot = 1, buffers = true},
    {name = "dampening", check = check.number, default = 0, slot = 2},
    {name = "weight_decay", check = check.number, min = 0, default = 0, slot = 3},
    {name = "nesterov", check = check.boolean, default = false},
    {name = "maximize", check = check.boolean, default = false},
  },
  state_keys = {"momentum_buffer"},
  update = update,
  check_options = check_options,
}
