--- resin.report: what a model is, as tables and drawings. The methods of modules load their files when they are first called.

local Module = require "resin.nn.module"

--- model:summary{8, 3, 32, 32} or model:summary(x): layers, output shapes, parameters, multiply-adds and memory, in the order in
--- which they run. The result is data; print it for the table.
---@param input resin.Tensor|(integer|false)[]
---@return resin.report.Summary
function Module:summary(input) return require("resin.report.summary")(self, input) end

--- model:visualize{path = "net.pdf", shape = {8, 3, 32, 32}}: draws the model. Without a path the drawing is returned as text.
---@param options? {path: string, format: string, shape: (integer|false)[], input: resin.Tensor, direction: string, repeats: boolean,
---title: string, program: string}
---@return string
function Module:visualize(options) return require("resin.report.visualize")(self, options) end

return {}
