--- The report of one model: its fields are data, and tostring(report) is the table for people.

local text = require "resin.doctor.text"

---@class resin.doctor.Report
---@field parameters table[]  {name, shape, numel, norm, mean, max, zeros (fraction), weight_norm, ratio, verdict, closed} in order
---@field without_gradient string[]  parameters that the loss does not depend on
---@field paths table[]  one per Apply that ran: {name, record, operation, skip, branch, alpha, scale, cosine, skip_gradient,
---branch_gradient, output, output_rms, shape, closed, opening, note, verdict}; empty without a probe. closed: the branch adds nothing
---yet; opening: it is behind a trained factor that gets a gradient; note: what is worth knowing and no fault
---@field loss number?
---@field profile "skips"|"weights"|nil  what first and last are of: gradients that enter the skips (of two or more), or relative
---gradients of the weights
---@field first number?  of the first tenth
---@field last number?   of the last tenth
---@field depth_ratio number?  first / last
---@field growth number?  of the values, from the first Apply to the last
---@field verdict string   "exploding", "vanishing", "dead", "skip dominates" or "healthy"
---@field verdicts {verdict: string, where: string, text: string}[]  the worst first
local Report = {}
Report.__index = Report
Report.__tostring = text.report

--- The guide's table: "name: gradient mean = 1.234e-05", a line per parameter whose name contains "weight".
---@return string
function Report:gradient_table() return text.gradient_table(self) end

--- The gradient norms by depth as bars of text, on a logarithmic scale.
---@param options? {width: integer, field: string}
---@return string
function Report:bars(options) return require("resin.doctor.plot").bars({self}, options) end

--- The same as an SVG picture; written to a file when a path is given.
---@param path? string
---@param options? {field: string, title: string}
---@return string svg
function Report:plot(path, options) return require("resin.doctor.plot").svg({self}, path, options) end

return Report
