--- Verdicts: what the numbers of a report mean.
-- Weights are judged by the relative gradient, |gradient| / |weight| (norms over the whole tensor): it does not depend on a
-- layer's size, and times the learning rate it is the part of the weight that a step of SGD replaces.
-- Depth is judged by what enters the skips, where a model has two or more: these are gradients of one kind of thing, the value
-- that goes through the model. It is a fault when the weights' gradients go the same way. Weights alone count beside skips only
-- where they differ by much more, because layers of different kinds differ by themselves (a Linear behind an attention by ten
-- times). An embedding's weights never count: each step reaches a few of its vectors.

local verdict = {}

--- The limits. doctor.examine(model, x, {thresholds = {vanishing = 100}}) replaces some for one report.
verdict.thresholds = {
  vanishing = 10,     -- how many times the gradients at the first skips (or weights) are below those at the last
  exploding = 100,    -- how many times they are above
  kinds = 100,        -- beside skips: how many times further than that the weights may differ
  gradient = 100,     -- exploding: the relative gradient of one weight (a parameter of two dimensions or more)
  growth = 1000,      -- exploding: how many times the values grow from the first Apply to the last (root mean square)
  dead = 0.9,         -- dead: the part of a parameter's gradient that is exactly zero
  skip = 100,         -- skip dominates: how many times the skip's contribution exceeds the branch's; no fault behind a trained scale
}

--- From bad to good; the report's verdict is the first that occurs.
verdict.order = {"exploding", "vanishing", "dead", "skip dominates", "healthy"}

local TENTH = 10

-- The geometric mean of |g|/|w| over entries first..last of a list.
local function typical(list, first, last)
  local sum = 0
  for i = first, last do sum = sum + math.log(list[i]) end
  return math.exp(sum / (last - first + 1))
end

-- The gradients that enter the skips, from the input to the output; nil when there are less than two.
local function skip_profile(report)
  local values = {}
  for _, path in ipairs(report.paths) do
    local g = path.skip_gradient
    if g and g > 0 and g < math.huge then values[#values + 1] = g end
  end
  return #values >= 2 and values or nil
end

-- Relative gradients of the weights, likewise.
local function weight_profile(report)
  local values = {}
  for _, p in ipairs(report.parameters) do
    if p.is_weight and p.ratio and p.ratio > 0 and p.finite and not p.closed and not p.sparse then values[#values + 1] = p.ratio end
  end
  return #values >= 2 and values or nil
end

local function add(report, kind, where, text)
  report.verdicts[#report.verdicts + 1] = {verdict = kind, where = where, text = text}
end

-- The first tenth of the values against the last: {first, last, what, verdict}; `more` widens the limits.
local function ends_of(values, what, limits, more)
  local ends = math.ceil(#values / TENTH)
  local first, last = typical(values, 1, ends), typical(values, #values - ends + 1, #values)
  local kind = "healthy"
  if first * limits.vanishing * more < last then kind = "vanishing" end
  if first > last * limits.exploding * more then kind = "exploding" end
  return {first = first, last = last, what = what, verdict = kind}
end

local function judge_depth(report, limits)
  local skips, weights = skip_profile(report), weight_profile(report)
  local s, w = skips and ends_of(skips, "skips", limits, 1), weights and ends_of(weights, "weights", limits, 1)
  local shown = s or w
  if not shown then return end
  report.first, report.last, report.depth_ratio, report.profile = shown.first, shown.last, shown.first / shown.last, shown.what
  local found = shown
  if s and w and s.verdict ~= w.verdict then found = ends_of(weights, "weights", limits, limits.kinds) end
  if found.verdict == "vanishing" then
    add(report, "vanishing", "depth", ("gradients vanish towards the input: %.3e at the first %s, %.3e at the last (%.3g times less)")
      :format(found.first, found.what, found.last, found.last / found.first))
  elseif found.verdict == "exploding" then
    add(report, "exploding", "depth", ("gradients grow towards the input: %.3e at the first %s, %.3e at the last (%.3g times more)")
      :format(found.first, found.what, found.last, found.first / found.last))
  end
end

local function judge_parameters(report, limits)
  for _, p in ipairs(report.parameters) do
    local kind, text = "healthy", nil
    if not p.finite then
      kind, text = "exploding", "the gradient is not finite"
    elseif p.is_weight and p.ratio and p.ratio > limits.gradient then
      kind, text = "exploding", ("the gradient is %.1e times the parameter"):format(p.ratio)
    elseif p.closed then
      text = nil
    elseif p.max == 0 then
      kind, text = "dead", "no value gets a gradient"
    elseif p.zeros > limits.dead and not p.sparse then
      kind, text = "dead", ("%.0f %% of its values get no gradient"):format(100 * p.zeros)
    end
    p.verdict = kind
    if text then add(report, kind, p.name, ("%s: %s"):format(p.name, text)) end
  end
  for _, name in ipairs(report.without_gradient) do
    add(report, "dead", name, name .. ": it has no gradient: the loss does not depend on it")
  end
end

local function judge_paths(report, limits)
  local first, last
  for _, path in ipairs(report.paths) do
    path.verdict = "healthy"
    if path.output_rms then
      first, last = first or path, path
    end
    if path.skip and path.branch then
      local what = ('Apply %s (record "%s")'):format(path.name, tostring(path.record))
      if path.branch == 0 and path.learns then
        path.note = "closed: the branch adds nothing yet, and opens with the first steps"
      elseif path.branch == 0 then
        path.verdict = "dead"
        add(report, "dead", path.name, what .. ": the branch adds nothing and no parameter of it gets a gradient")
      elseif path.skip > limits.skip * path.branch and path.opening then
        path.note = "small: the branch is behind a trained scale, which gets a gradient"
      elseif path.skip > limits.skip * path.branch then
        path.verdict = "skip dominates"
        add(report, "skip dominates", path.name, ("%s: the skip contributes %.3e, the branch %.3e"):format(what, path.skip,
          path.branch))
      end
    end
  end
  if first and first.output_rms > 0 then
    report.growth = last.output_rms / first.output_rms
    if report.growth > limits.growth or report.growth ~= report.growth then
      add(report, "exploding", "values", ("the values grow %.1e times from Apply %s to Apply %s"):format(report.growth, first.name,
        last.name))
    end
  end
end

local function rank(kind)
  for i, name in ipairs(verdict.order) do
    if name == kind then return i end
  end
end

--- Judges a report: sets the verdict of each parameter and path, report.verdicts (the worst first) and report.verdict.
---@param report table
---@param limits table
function verdict.judge(report, limits)
  report.verdicts = {}
  judge_depth(report, limits)
  judge_parameters(report, limits)
  judge_paths(report, limits)
  for i, v in ipairs(report.verdicts) do v.order = i end
  table.sort(report.verdicts, function(a, b)
    local x, y = rank(a.verdict), rank(b.verdict)
    if x ~= y then return x < y end
    return a.order < b.order
  end)
  for _, v in ipairs(report.verdicts) do v.order = nil end
  report.verdict = report.verdicts[1] and report.verdicts[1].verdict or "healthy"
end

return verdict
