--- Watches which layers a forward runs, and with what.
-- While observe.run is active each module that can be called has a `forward` of its own as a field, which hides the one of its
-- class: containers and users find it wherever they look for forward, so nothing else knows about watching and a model that
-- is not watched pays nothing. The operations of Applys are watched through their plan. Containers that belong to the plan
-- of another one are never called and not watched. Everything is put back when the function ends, also by an error.

local Module = require "resin.nn.module"
local link = require "resin.residual.link"
local core = require "resin.residual.core"

local observe = {}

local APPLY, LAYER, RECORD = link.APPLY, link.LAYER, link.RECORD

local function finish(visitor, module, input, ...)
  local n, results = select("#", ...), {...}
  visitor.leave(module, input, results[1])
  return unpack(results, 1, n)
end

local function watch(module, visitor, undo)
  local own, original = rawget(module, "forward"), module.forward
  undo[#undo + 1] = function() rawset(module, "forward", own) end
  rawset(module, "forward", function(self, ...)
    local n, given = select("#", ...), {...}
    visitor.enter(self, given[1])
    return finish(visitor, self, given[1], original(self, unpack(given, 1, n)))
  end)
end

local function watch_apply(plan, i, container, visitor, undo)
  local original = plan.run[i]
  undo[#undo + 1] = function() plan.run[i] = original end
  plan.run[i] = function(x, r, apply, layout, spatial)
    return visitor.apply({plan = plan, step = i, container = container, run = original, layout = layout, spatial = spatial}, x, r, apply)
  end
end

--- Calls visit(module) for the children that a module calls: what stands in the plan of a residual container, not the containers
--- that the plan laid out.
---@param module resin.nn.Module
---@param visit fun(module: resin.nn.Module)
---@param visit_apply? fun(plan: table, step: integer, container: resin.nn.Module)
function observe.called(module, visit, visit_apply)
  if link.is_residual(module) then
    local plan = core.plan(module)
    for i = 1, plan.n do
      if plan.kind[i] == LAYER then
        visit(plan.module[i])
      elseif plan.kind[i] == APPLY or plan.kind[i] == RECORD then
        if plan.kind[i] == APPLY and visit_apply then visit_apply(plan, i, module) end
        local _, own = Module.child_list(plan.module[i])      -- those too that a front shows elsewhere
        for k = 1, #own do visit(own[k]) end
      end
    end
    return
  end
  local _, children = module:child_list()
  for k = 1, #children do visit(children[k]) end
end

local function prepare(model, visitor, undo)
  local seen, seen_plans = {}, {}
  local function each_apply(plan, i, container)
    local key = tostring(plan) .. i
    if visitor.apply and not seen_plans[key] then
      seen_plans[key] = true
      watch_apply(plan, i, container, visitor, undo)
    end
  end
  local modules = {}
  local function each(module)
    if seen[module] then return end
    seen[module] = true
    modules[#modules + 1] = module
    observe.called(module, each, each_apply)
  end
  each(model)
  -- Only now, because a container whose forward is hidden is no longer known as what it is.
  if visitor.enter then
    for _, module in ipairs(modules) do watch(module, visitor, undo) end
  end
end

local function restore(undo)
  for i = #undo, 1, -1 do undo[i]() end
end

local function ended(undo, ok, ...)
  local n, results = select("#", ...), {...}
  restore(undo)
  if not ok then error(results[1], 0) end
  return unpack(results, 1, n)
end

--- Runs fn() and returns its results. Meanwhile visitor.enter(module, input) and visitor.leave(module, input, output) are called
--- around each forward below and including `model`, and visitor.apply(place, x, r, apply) instead of each Apply's operation:
--- place.run(x, r, apply, place.layout, place.spatial) runs it, and its result is to be returned. r is a list for an Apply of several
--- records. Either may be missing.
---@param model resin.nn.Module
---@param visitor {enter: function?, leave: function?, apply: function?}
---@param fn function
function observe.run(model, visitor, fn)
  local undo = {}
  prepare(model, visitor, undo)
  return ended(undo, pcall(fn))
end

for _, fn in ipairs{finish, ended} do jit.off(fn, true) end     -- they read `...` beside calls

return observe
