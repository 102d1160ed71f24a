/* The loops of rnn.c for one element type: REAL, N(name), TANH, SIGMOID. */

static void N(lstm)(int64_t n, int64_t hidden, void *s, const void *pu, int64_t ug, const void *bias, const void *pc0, void *pc,
                    void *ph) {
  REAL *const restrict i = s, *const restrict f = i + hidden, *const restrict g = f + hidden, *const restrict o = g + hidden;
  const REAL *const bi = bias, *const bf = bi + hidden, *const bg = bf + hidden, *const bo = bg + hidden, *const c0 = pc0;
  const REAL *const ui = pu, *const uf = ui + ug, *const um = uf + ug, *const uo = um + ug;
  REAL *const restrict c = pc, *const restrict h = ph;
  RSI_LOOP for (int64_t u = 0; u < n; u++) {
    const REAL vi = SIGMOID(i[u] + ui[u] + bi[u]), vf = SIGMOID(f[u] + uf[u] + bf[u]);
    const REAL vg = TANH(g[u] + um[u] + bg[u]), vo = SIGMOID(o[u] + uo[u] + bo[u]);
    const REAL vc = vf * c0[u] + vi * vg;
    i[u] = vi, f[u] = vf, g[u] = vg, o[u] = vo;
    c[u] = vc;
    h[u] = vo * TANH(vc);
  }
}

static void N(lstm_grad)(int64_t n, int64_t hidden, const void *s, const void *pc0, const void *pc, const void *pdh,
                         const void *pgy, void *pdc, void *d) {
  const REAL *const i = s, *const f = i + hidden, *const g = f + hidden, *const o = g + hidden, *const c0 = pc0, *const c = pc;
  const REAL *const dh = pdh, *const gy = pgy;
  REAL *const restrict dc = pdc, *const restrict di = d, *const restrict df = di + hidden, *const restrict dg = df + hidden;
  REAL *const restrict dout = dg + hidden;
  RSI_LOOP for (int64_t u = 0; u < n; u++) {
    const REAL a = dh[u] + gy[u], t = TANH(c[u]), e = dc[u] + a * o[u] * (1 - t * t);
    di[u] = e * g[u] * i[u] * (1 - i[u]);
    df[u] = e * c0[u] * f[u] * (1 - f[u]);
    dg[u] = e * i[u] * (1 - g[u] * g[u]);
    dout[u] = a * t * o[u] * (1 - o[u]);
    dc[u] = e * f[u];
  }
}

static void N(gru)(int64_t n, int64_t hidden, void *s, const void *pu, const void *bias, const void *ph0, void *ph) {
  REAL *const restrict r = s, *const restrict z = r + hidden, *const restrict m = z + hidden, *const restrict w = m + hidden;
  const REAL *const ur = pu, *const uz = ur + hidden, *const um = uz + hidden, *const h0 = ph0;
  const REAL *const br = bias, *const bz = br + hidden, *const bm = bz + hidden, *const bw = bm + hidden;
  REAL *const restrict h = ph;
  RSI_LOOP for (int64_t u = 0; u < n; u++) {
    const REAL vr = SIGMOID(r[u] + ur[u] + br[u]), vz = SIGMOID(z[u] + uz[u] + bz[u]), vw = um[u] + bw[u];
    const REAL vm = TANH(m[u] + bm[u] + vr * vw);
    r[u] = vr, z[u] = vz, m[u] = vm, w[u] = vw;
    h[u] = vm + vz * (h0[u] - vm);
  }
}

static void N(gru_grad)(int64_t n, int64_t hidden, const void *s, const void *ph0, const void *pgy, void *pdh, void *pdx,
                        void *pdu) {
  const REAL *const r = s, *const z = r + hidden, *const m = z + hidden, *const w = m + hidden, *const h0 = ph0;
  REAL *const restrict dh = pdh, *const restrict xr = pdx, *const restrict xz = xr + hidden, *const restrict xm = xz + hidden;
  REAL *const restrict ur = pdu, *const restrict uz = ur + hidden, *const restrict um = uz + hidden;
  const REAL *const gy = pgy;
  RSI_LOOP for (int64_t u = 0; u < n; u++) {
    const REAL a = dh[u] + gy[u], vz = z[u], vr = r[u], vm = m[u];
    const REAL dm = a * (1 - vz) * (1 - vm * vm), dz = a * (h0[u] - vm) * vz * (1 - vz), dr = dm * w[u] * vr * (1 - vr);
    xr[u] = ur[u] = dr;
    xz[u] = uz[u] = dz;
    xm[u] = dm;
    um[u] = dm * vr;
    dh[u] = a * vz;
  }
}

static void N(rnn)(int64_t n, void *py, const void *pb, int relu) {
  REAL *const restrict y = py;
  const REAL *const b = pb;
  if (relu)
    for (int64_t u = 0; u < n; u++) {
      const REAL v = y[u] + b[u];
      y[u] = v < 0 ? 0 : v;
    }
  else
    for (int64_t u = 0; u < n; u++) y[u] = TANH(y[u] + b[u]);
}

static void N(rnn_grad)(int64_t n, const void *py, const void *pdh, const void *pgy, int relu, void *pd) {
  const REAL *const y = py, *const dh = pdh, *const gy = pgy;
  REAL *const restrict d = pd;
  if (relu)
    for (int64_t u = 0; u < n; u++) d[u] = y[u] > 0 ? dh[u] + gy[u] : 0;
  else
    for (int64_t u = 0; u < n; u++) d[u] = (dh[u] + gy[u]) * (1 - y[u] * y[u]);
}

/* Squares of 16, so that the lines on both sides are used up while they are near. */
static void N(transpose)(int64_t rows, int64_t columns, const void *pf, int64_t ldf, void *pt, int64_t ldt) {
  const REAL *const from = pf;
  REAL *const restrict to = pt;
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t j = 0; j < columns; j += 16)
      for (int64_t c = j; c < columns && c < j + 16; c++)
        for (int64_t r = i; r < rows && r < i + 16; r++) to[c * ldt + r] = from[r * ldf + c];
}

static const rsi_rnn_loops N(rnn_loops) = {
  .lstm = N(lstm), .lstm_grad = N(lstm_grad), .gru = N(gru), .gru_grad = N(gru_grad), .rnn = N(rnn), .rnn_grad = N(rnn_grad),
  .transpose = N(transpose),
};
