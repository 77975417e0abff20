// What the client tests written in JavaScript share: the environment, named steps, comparisons.
//
// `run` takes [title, async function] pairs, runs them in order, stops at the first failure and names it.

const crypto = require('node:crypto')
const path = require('node:path')

const wanted = (name) => {
  if (!process.env[name]) throw new Error(`set ${name}`)
  return process.env[name]
}

exports.endpoint = wanted('ENDPOINT')
exports.accessKey = wanted('ACCESS_KEY')
exports.secretKey = wanted('SECRET_KEY')
exports.bucket = wanted('BUCKET')
exports.region = process.env.REGION || 'garage'
exports.prefix = `${path.basename(process.argv[1])}-${process.pid}/`

exports.data = (size) => crypto.randomBytes(size)

exports.same = (expected, actual) => {
  const digest = (bytes) => crypto.createHash('sha256').update(bytes).digest('hex')
  if (!Buffer.from(actual).equals(expected)) {
    throw new Error(`wanted ${expected.length} bytes with sha256 ${digest(expected)}, got ${actual.length} with ${digest(actual)}`)
  }
}

exports.equal = (what, expected, actual) => {
  const [left, right] = [JSON.stringify(expected), JSON.stringify(actual)]
  if (left !== right) throw new Error(`${what}: wanted ${left}, got ${right}`)
}

// The call must be refused with this error code.
exports.refused = async (code, call) => {
  try {
    await call()
  } catch (error) {
    exports.equal('error code', code, error.code ?? error.name)
    return
  }
  throw new Error(`succeeded although ${code} was due`)
}

exports.run = async (steps) => {
  for (const [title, body] of steps) {
    console.log(`step: ${title}`)
    try {
      await body()
    } catch (error) {
      console.error(error)
      console.error(`FAILED in step: ${title}`)
      process.exit(1)
    }
  }
}
