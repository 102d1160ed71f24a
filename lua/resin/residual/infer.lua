--- Shape inference on a plan: makes projections and gates before training, and finds what does not fit before a forward.
-- Two uses. `build` follows a shape that the user gave and raises whatever does not fit. `try`, at construction, knows only what
-- layers declare (Linear(64, 128) takes 64 features): it follows shapes in which the batch and the image are guesses, twice with
-- different guesses, and acts on what both agree about. In a walk nil is an unknown shape, false an unknown size.

local lib = require "resin.lib"
local check = require "resin.check"
local class = require "resin.nn.class"
local create = require "resin.create"
local grad = require "resin.grad"
local Module = require "resin.nn.module"
local scope = require "resin.scope"
local Sequential = require("resin.nn.sequential").Sequential
local shapes = require "resin.nn.shapes"
local fit = require "resin.residual.fit"
local link = require "resin.residual.link"

local C, ctx = lib.C, lib.ctx
local LAYER, RECORD, APPLY, ENTER = link.LAYER, link.RECORD, link.APPLY, link.ENTER

local infer = {}

-- ---- what layers declare --------------------------------------------------------------------------------------------------

local GUESSES = {64, 96}     -- sizes of an image whose size is not known

-- Shapes that a layer may be given, by what its constructor was told; nil when it says nothing. The batch is not known.
local declared
function declared(m, guess)
  local function number(name)
    local value = rawget(m, name)
    return type(value) == "number" and value or nil
  end
  local features = number("in_features") or number("input_size") or number("embed_dim")
  if features then return {{false, features}, {false, false, features}} end
  local sizes = rawget(m, "normalized_shape")
  if class.is_plain(sizes) then
    local shape = {false}
    for i = 1, #sizes do shape[i + 1] = sizes[i] end
    return {shape}
  end
  local channels, rank = number("in_channels") or number("num_features"), tonumber((m.type:match("(%d)d$")))
  if channels and rank then
    local shape = {false, channels}
    for i = 1, rank do shape[i + 2] = guess end
    return rank == 1 and number("num_features") and {{false, channels}, shape} or {shape}
  end
  if m.passes_input or link.is_transparent(m) then     -- a container whose first child gets what it is given
    local _, children = m:child_list()
    return children[1] and declared(children[1], guess)
  end
  return nil
end

local function shape_after(m, shape)
  local depth = check.depth
  local ok, out = pcall(m.output_shape, m, shape)
  check.depth = depth
  if ok then return out end
  return nil, out
end

-- The shape that a module makes of the current and the recorded one, when it says so (joined_shape).
local function shape_joined(m, current, saved)
  local depth = check.depth
  local ok, out = pcall(m.joined_shape, m, current, saved)
  check.depth = depth
  if ok then return out end
  return nil, out
end

local function keeps(m, shape)
  local out = shape_after(m, shape)
  return out ~= nil and #out == #shape and fit.same(out, shape)
end

-- A layer that keeps every shape, as an activation does.
local function keeps_all(m)
  return keeps(m, {3, 5}) and keeps(m, {2, 3, 5, 7})
end

-- The shapes that may come into step i, from the first layer ahead that declares some; only such steps lie between as keep shapes.
local function seeds(plan, i, guess)
  for k = i, plan.n do
    local kind, m = plan.kind[k], plan.module[k]
    if kind == LAYER then
      local found = declared(m, guess)
      if found then return found end
      if not keeps_all(m) then return nil end
    elseif kind == APPLY and (m:definition().shapes ~= "same" or m.broadcast) then
      return nil
    end
  end
  return nil
end

-- ---- one Apply ------------------------------------------------------------------------------------------------------------

--- What an Apply does to shapes: {result = shape or nil, projection = …, why = …, failed = …, gates = boolean, at, saved, current}.
local function decide(plan, i, saved, current)
  local apply, record = plan.module[i], plan.record[i]
  local definition = apply:definition()
  local kind = definition.shapes
  if apply.transform and saved then saved = shape_after(apply.transform, saved) end
  local d = {kind = kind, saved = saved, current = current, gates = apply:incomplete()}
  if apply.own_projection and saved then
    saved = shape_after(apply.projection_layer, saved)
    d.saved = saved
  end
  if kind == "any" then
    if not (saved and current) then return d end
    if apply.op and apply.op.joined_shape then
      d.result, d.error = shape_joined(apply.op, current, saved)
    elseif definition.shape then
      d.result = definition.shape(current, saved)
    end
  elseif not current or not saved then
    if kind == "same" then d.result = current end
    return d
  end
  d.at = fit.feature_dim(#current, plan.layout[i], plan.spatial[i], apply.dim or nil)
  if not fit.same(saved, current) then
    if (record and record.module.need_projection or apply.make_projection) and not apply.own_projection then
      d.projection, d.why = fit.projection(saved, current, d.at)
      if d.projection then saved = fit.projected(saved, d.at, d.projection) else d.failed = true end
    elseif apply.broadcast and kind == "same" then
      current = fit.broadcast(saved, current)
      if not current then d.failed = true end
    elseif kind == "same" or (kind == "concat" and not fit.same(saved, current, d.at)) then
      d.failed = true
    end
  end
  if d.failed or kind == "any" then return d end
  if kind == "concat" then
    local at = d.at
    local out = shapes.copy(current)
    out[at] = saved[at] and current[at] and saved[at] + current[at]
    d.result = out
  else
    d.result = current
  end
  return d
end

-- What an Apply of several records does to shapes.
local function decide_many(plan, i, recorded, current)
  local apply, many = plan.module[i], plan.many[i]
  local kind = apply:definition().shapes
  local d = {kind = kind, current = current}
  if kind == "any" then return d end
  if kind == "same" then d.result = current end
  if not current then return d end
  d.at = fit.feature_dim(#current, plan.layout[i], plan.spatial[i], apply.dim or nil)
  local total = current[d.at]
  for k, slot in ipairs(many.slots) do
    local saved = recorded[slot]
    if apply.transform and saved then saved = shape_after(apply.transform, saved) end
    if not saved then
      total = false
      if kind == "concat" then return d end
    elseif not fit.same(saved, current, kind == "concat" and d.at or nil) then
      d.saved, d.failed, d.which = saved, true, many.records[k]
      return d
    else
      total = total and saved[d.at] and total + saved[d.at]
    end
  end
  if kind == "concat" then
    d.result = shapes.copy(current)
    d.result[d.at] = total
  end
  return d
end

-- The dtype of the layers around step i.
local function dtype_near(plan, i)
  for distance = 1, plan.n do
    for _, k in ipairs{i - distance, i + distance} do
      if plan.kind[k] == LAYER then
        local first = plan.module[k]:parameters()[1]
        if first then return first.dtype end
      end
    end
  end
  return "f32"
end

-- Is it known that the shapes agree without a projection?
local function known_same(d)
  return d.saved and d.current and d.at and d.saved[d.at] and d.saved[d.at] == d.current[d.at] and fit.same(d.saved, d.current)
end

-- Makes what step i lacks, and anew what no longer is what it wants.
local function equip(plan, i, d)
  local apply = plan.module[i]
  if apply.unsure and (d.projection or known_same(d)) then apply:review_projection(d.projection) end
  if d.projection and not apply.projection_layer then
    apply:add_projection(d.projection, dtype_near(plan, i))
  elseif d.projection and apply.stride_unknown and d.projection.stride then
    apply:set_stride(d.projection)
  end
  if d.gates and apply:incomplete() and d.current and d.at and d.current[d.at] then
    apply:add_gates(d.current, d.at, dtype_near(plan, i))
  end
end

-- ---- walking --------------------------------------------------------------------------------------------------------------

-- Runs a layer on zeros to learn its output shape, without gradients and in evaluation mode.
local function run_on_zeros(m, shape)
  local size = {}
  for i = 1, #shape do size[i] = shape[i] or 1 end
  return Module.run(m, create.zeros(size)).shape
end

local function dry_run(m, shape)
  local modules, modes = m:modules(), {}
  for i = 1, #modules do modes[i], modules[i].training = rawget(modules[i], "training"), false end
  local depth = check.depth
  local ok, out = pcall(grad.no_grad, scope.user, run_on_zeros, m, shape)
  check.depth = depth
  for i = 1, #modules do rawset(modules[i], "training", modes[i]) end
  if ok then
    if not shape[1] then out[1] = false end
    return out
  end
  return nil
end

-- Would a layer over an image take this shape as one image without a batch? Guessed shapes always have a batch.
local function unbatched(m, shape)
  local rank = tonumber((m.type:match("(%d)d$")))
  return rank and m.layout == "channels_first" and m.type ~= "BatchNorm1d" and #shape == rank + 1
end

-- Follows `shape` through the plan. visit(i, d) gets what each Apply does. Options: guess and variant (of the seeds), for
-- construction; strict: what does not fit is an error. Returns the shape of the result and whether every layer took its input.
local function walk(plan, shape, options, visit)
  local recorded, taken = {}, true
  for i = 1, plan.n do
    local kind, m = plan.kind[i], plan.module[i]
    local depth = check.depth
    if kind == LAYER then
      if not shape and options.guess then
        local found = seeds(plan, i, options.guess)
        shape = found and found[math.min(options.variant, #found)]
      end
      if shape then
        check.push(plan.owner[i], plan.key[i], m.type)
        local out, why
        if not (options.guess and unbatched(m, shape)) then out, why = shape_after(m, shape) end
        if not out and options.strict then
          out = dry_run(m, shape)
          if not out then error(why, 0) end
        end
        check.depth = depth
        taken = taken and out ~= nil
        shape = out
      end
    elseif kind == RECORD then
      if not shape and options.guess then
        local found = seeds(plan, i, options.guess)
        shape = found and found[math.min(options.variant, #found)]
      end
      local saved = shape
      if m.transform and shape then
        check.push(plan.owner[i], plan.key[i], m.type)
        saved = shape_after(m.transform, shape)
        if not saved and options.strict then saved = dry_run(m.transform, shape) end
        check.depth = depth
      end
      recorded[plan.slot[i]] = saved
      if options.record then options.record(i, saved) end
    elseif kind == APPLY then
      local d
      if plan.many[i] then
        d = decide_many(plan, i, recorded, shape)
      else
        d = decide(plan, i, recorded[plan.slot[i]], shape)
      end
      if d.error and options.strict then error(d.error, 0) end
      if d.failed and options.strict then
        m:mismatch(link.quote(plan.key[i]), d.which or plan.record[i], d.saved, d.current, d.why)
      end
      visit(plan, i, d)
      shape = d.result
    elseif kind == ENTER then
      check.push(plan.owner[i], plan.key[i], m.type)
    else
      check.depth = depth - 1
    end
  end
  return shape, taken
end

-- Calls fn(...) and puts the path of layers back, also when it fails. A recording under way does not see it.
local function guarded(fn, ...)
  local depth = check.depth
  local paused = C.rs_trace_pause(ctx, 1)
  local ok, out = pcall(fn, ...)
  C.rs_trace_pause(ctx, paused)
  check.depth = depth
  if not ok then error(out, 0) end
  return out
end

local STRICT = {strict = true}

--- Follows a given shape and makes what is missing. What does not fit is an error.
---@param plan table
---@param shape (integer|false)[]
---@param record? fun(step: integer, shape: table?)  called with what each Record keeps
---@return (integer|false)[]? result  nil when an operation's result has no known shape
function infer.build(plan, shape, record)
  link.require_resolved(plan)
  return (guarded(walk, plan, shape, record and {strict = true, record = record} or STRICT, equip))
end

-- The shape after any module: through its children where it is a plain Sequential, so that a function in it may be run on zeros.
local function through(m, shape)
  if m.forward == Sequential.forward then
    for i = 1, #m do
      local depth = check.push(m.type, i, m[i].type)
      shape = through(m[i], shape)
      check.depth = depth
    end
    return shape
  end
  local out, why = shape_after(m, shape)
  if not out and not link.is_residual(m) then out = dry_run(m, shape) end
  if not out then error(why, 0) end
  return out
end

--- Makes what is missing in a module and everything below it, for an input of `shape`.
---@param m resin.nn.Module
---@param shape (integer|false)[]
function infer.module(m, shape)
  shapes.check(shape, m.type .. ": build")
  guarded(through, m, shape)
end

local function projection_text(p)
  if not p then return "none" end
  return p.kind .. p.inp .. ">" .. p.out .. "/" .. table.concat(p.stride or {}, ",")
end

-- What a failed Apply can never become, whatever the batch and the image are.
local function hopeless(d)
  return d.failed and not d.why and d.kind == "same" and #d.saved == #d.current and d.saved[d.at] and d.current[d.at]
    and d.saved[d.at] ~= d.current[d.at]
end

local function without_guesses(shape, at)
  local out = {}
  for i = 1, #shape do out[i] = i == at and shape[i] end
  return out
end

-- Do all walks agree about what an Apply needs?
local function agreed(apply, decisions)
  local a, gates = decisions[1], apply:definition().gates and apply:incomplete()
  for _, b in ipairs(decisions) do
    if b.failed or projection_text(a.projection) ~= projection_text(b.projection) or a.gates ~= b.gates
      or (a.current and a.current[a.at]) ~= (b.current and b.current[b.at])
      or (gates and a.at and b.at and #a.current - a.at ~= #b.current - b.at) then
      return false
    end
  end
  return true
end

local function try(plan)
  local decisions = {}
  local function collect(_, i, d) decisions[#decisions + 1] = {i, d} end
  local walks, depth = {}, check.depth
  for need_taken = 1, 2 do       -- where no variant passes every layer, the first counts
    for _, guess in ipairs(GUESSES) do
      for variant = 1, need_taken == 1 and 2 or 1 do
        decisions = {}
        local _, taken = walk(plan, nil, {guess = guess, variant = variant}, collect)
        if taken or need_taken == 2 then walks[#walks + 1] = decisions end
      end
    end
    if #walks > 0 then break end
  end
  check.depth = depth
  local wanted = {}
  for k = 1, #walks[1] do
    local i, all, lost = walks[1][k][1], {}, true
    for w, list in ipairs(walks) do
      all[w] = list[k][2]
      lost = lost and hopeless(all[w])
    end
    local a = all[1]
    if lost then
      for _, step in ipairs(link.path(plan, i)) do check.push(plan.owner[step], plan.key[step], plan.module[step].type) end
      plan.module[i]:mismatch(link.quote(plan.key[i]), a.which or plan.record[i], without_guesses(a.saved, a.at),
        without_guesses(a.current, a.at))
    end
    if agreed(plan.module[i], all) then wanted[#wanted + 1] = {i, a} end
  end
  for _, entry in ipairs(wanted) do equip(plan, entry[1], entry[2]) end
end

--- At construction: makes what the declared sizes determine, and raises a mismatch that no input can mend.
---@param plan table
function infer.try(plan) guarded(try, plan) end

infer.decide, infer.decide_many = decide, decide_many     -- for drawings and tables

return infer
