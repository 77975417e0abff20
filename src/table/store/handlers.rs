//! What coordinators may ask of this node's rows, over RPC.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use garage_rpc::endpoint::{Caller, Handler, Message};
use garage_rpc::error::RpcError;

use super::TableStore;
use crate::wire::{AskEpoch, EpochIs, Found, Page, Range, Read, Verdict, Write};

impl Handler<Write> for TableStore {
    fn handle(&self, caller: Caller, request: Message<Write>) -> BoxFuture<'static, Result<Message<Verdict>, RpcError>> {
        let store = self.clone();
        async move { Ok(store.write_for(caller.node, request.body).await?.into()) }.boxed()
    }
}

impl Handler<Read> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<Read>) -> BoxFuture<'static, Result<Message<Found>, RpcError>> {
        let store = self.clone();
        async move { Ok(store.read(request.body).await?.into()) }.boxed()
    }
}

impl Handler<Range> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<Range>) -> BoxFuture<'static, Result<Message<Page>, RpcError>> {
        let store = self.clone();
        async move { Ok(store.range(request.body).await?.into()) }.boxed()
    }
}

impl Handler<AskEpoch> for TableStore {
    fn handle(&self, _caller: Caller, request: Message<AskEpoch>) -> BoxFuture<'static, Result<Message<EpochIs>, RpcError>> {
        let (store, AskEpoch { table, slot }) = (self.clone(), request.body);
        async move { Ok(EpochIs { epoch: store.epoch(table, slot).await? }.into()) }.boxed()
    }
}
