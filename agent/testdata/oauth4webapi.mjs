// A client of an organization's authorization server that uses npm's oauth4webapi, which is strict about what
// the RFCs say. It is told issuer, client and the port of nginx; it prints the address that a person has to open
// and reads the one that the person is sent back to.
import https from 'node:https'
import readline from 'node:readline'
import fs from 'node:fs'
import * as oauth from 'oauth4webapi'

const [issuer, clientId, secret, redirect, port, ca] = process.argv.slice(2)
const client = { client_id: clientId }
const auth = oauth.ClientSecretBasic(secret)

// Names lead to this machine, whatever a name server says.
async function local(url, options) {
  const to = new URL(url)
  const body = options.body?.toString()
  return new Promise((resolve, reject) => {
    const request = https.request({
      host: '127.0.0.1', port, servername: to.hostname, path: to.pathname + to.search, method: options.method,
      headers: { ...Object.fromEntries(new Headers(options.headers)), host: to.host, ...(body ? { 'content-length': Buffer.byteLength(body) } : {}) },
      ca: fs.readFileSync(ca),
    }, (answer) => {
      const parts = []
      answer.on('data', (part) => parts.push(part))
      answer.on('end', () => resolve(new Response(Buffer.concat(parts), { status: answer.statusCode, headers: answer.headers })))
    })
    request.on('error', reject)
    request.end(body)
  })
}
const options = { [oauth.customFetch]: local }

function check(what, ok) {
  if (!ok) throw new Error(what)
}

async function refused(what, answer) {
  try {
    await answer()
  } catch (error) {
    check(`${what}: ${error}`, error.error === 'invalid_grant')
    return
  }
  throw new Error(`${what} was accepted`)
}

const server = await oauth.processDiscoveryResponse(new URL(issuer),
  await oauth.discoveryRequest(new URL(issuer), { algorithm: 'oauth2', ...options }))

const verifier = oauth.generateRandomCodeVerifier()
const state = oauth.generateRandomState()
const open = new URL(server.authorization_endpoint)
open.search = new URLSearchParams({
  client_id: clientId, redirect_uri: redirect, response_type: 'code', scope: 'room:read', state,
  code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256',
}).toString()
console.log(open.href)
const back = await new Promise((resolve) => readline.createInterface({ input: process.stdin }).once('line', resolve))

const parameters = oauth.validateAuthResponse(server, client, new URL(back), state)
const exchange = async () => oauth.processAuthorizationCodeResponse(server, client,
  await oauth.authorizationCodeGrantRequest(server, client, auth, parameters, redirect, verifier, options))
const first = await exchange()
check('scope', first.scope === 'room:read' && first.refresh_token)

const refresh = async (token) => oauth.processRefreshTokenResponse(server, client,
  await oauth.refreshTokenGrantRequest(server, client, auth, token, options))
const second = await refresh(first.refresh_token)
check('rotation', second.refresh_token && second.refresh_token !== first.refresh_token)

const introspect = async (token) => oauth.processIntrospectionResponse(server, client,
  await oauth.introspectionRequest(server, client, auth, token, options))
check('active', (await introspect(second.access_token)).active)

await oauth.processRevocationResponse(await oauth.revocationRequest(server, client, auth, second.access_token, options))
check('revoked', !(await introspect(second.access_token)).active)

await refused('a code, for the second time', exchange)
await refused('a refresh token of a family that has ended', () => refresh(second.refresh_token))

const own = await oauth.processClientCredentialsResponse(server, client,
  await oauth.clientCredentialsGrantRequest(server, client, auth, new URLSearchParams({ scope: 'room:read' }), options))
check('for itself', (await introspect(own.access_token)).active)
console.log('ok')
process.exit(0)
